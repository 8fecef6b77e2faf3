//! The unmodified servers that the demo can start: nginx, else python3's own, else [`serve`], which needs nothing but
//! the standard library. All of them serve the same document root and know nothing of Haypile.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// nginx with two workers.
    Nginx,
    /// `python3 -m http.server`.
    Python,
    /// This program's own, with one thread a connection.
    Std,
}

impl Kind {
    /// The best one installed.
    pub fn best() -> Kind {
        match () {
            () if find_program("nginx").is_some() => Kind::Nginx,
            () if find_program("python3").is_some() => Kind::Python,
            () => Kind::Std,
        }
    }

    /// The name to show.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Nginx => "nginx (2 workers)",
            Kind::Python => "python3 -m http.server",
            Kind::Std => "example server (std only)",
        }
    }

    /// True when it keeps connections alive.
    pub fn keeps_alive(self) -> bool {
        self != Kind::Python
    }

    /// Which of `addresses` it can serve at the same time: python's server takes only one.
    pub fn served(self, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        let most = if self == Kind::Python { 1 } else { addresses.len() };
        addresses[..most].to_vec()
    }

    /// The command that serves `root` on `addresses`; `work` is an empty folder for its own files.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub fn command(
        self,
        addresses: &[SocketAddr],
        root: &Path,
        work: &Path,
    ) -> io::Result<Vec<String>> {
        let text = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
        Ok(match self {
            Kind::Nginx => {
                let config = write_nginx_config(addresses, root, work)?;
                text(&["nginx", "-p", &show(work), "-c", &show(&config), "-e", "stderr"])
            }
            Kind::Python => {
                let (ip, port) = (addresses[0].ip().to_string(), addresses[0].port().to_string());
                text(&["python3", "-m", "http.server", "-b", &ip, "-d", &show(root), &port])
            }
            Kind::Std => {
                let mut words = text(&[&show(&std::env::current_exe()?), "demo-server"]);
                words.push(show(root));
                words.extend(addresses.iter().map(SocketAddr::to_string));
                words
            }
        })
    }
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

fn write_nginx_config(addresses: &[SocketAddr], root: &Path, work: &Path) -> io::Result<PathBuf> {
    let config = work.join("nginx.conf");
    let (work, root) = (show(work), show(root));
    let listen: String = addresses.iter().map(|address| format!("listen {address}; ")).collect();
    std::fs::write(
        &config,
        format!(
            "daemon off; worker_processes 2; user root; pid {work}/nginx.pid;\n\
             error_log stderr warn;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; sendfile on; tcp_nopush on;\n\
             client_body_temp_path {work}/body; proxy_temp_path {work}/proxy;\n\
             fastcgi_temp_path {work}/fastcgi; uwsgi_temp_path {work}/uwsgi;\n\
             scgi_temp_path {work}/scgi;\n\
             server {{ {listen}root {root}; }} }}\n"
        ),
    )?;
    Ok(config)
}

/// The path of an executable that the shell would find, also in the system folders that users' paths leave out.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|candidate| {
        use std::os::unix::fs::PermissionsExt;
        candidate
            .metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

/// The example server: answers GET for the files of `root` on all `addresses` until it is killed.
///
/// # Errors
/// When it cannot listen.
pub fn serve(addresses: &[SocketAddr], root: &Path) -> io::Result<()> {
    let listeners: Vec<TcpListener> =
        addresses.iter().map(TcpListener::bind).collect::<io::Result<_>>()?;
    thread::scope(|scope| {
        let loops: Vec<_> =
            listeners.iter().map(|listener| scope.spawn(|| accept_loop(listener, root))).collect();
        loops.into_iter().try_for_each(|one| one.join().unwrap_or(Ok(())))
    })
}

fn accept_loop(listener: &TcpListener, root: &Path) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        let root = root.to_path_buf();
        // A client that breaks off concerns nobody but itself.
        thread::spawn(move || drop(converse(stream, &root)));
    }
}

fn converse(stream: TcpStream, root: &Path) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let Some((name, close)) = read_request(&mut stream)? else { return Ok(()) };
        answer(stream.get_mut(), root, &name)?;
        if close {
            return Ok(());
        }
    }
}

fn read_request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<(String, bool)>> {
    let mut line = String::new();
    if stream.by_ref().take(8192).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let name = line.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_string();
    let mut close = false;
    loop {
        line.clear();
        if stream.by_ref().take(8192).read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok(Some((name, close)));
        }
        close |= line.trim().eq_ignore_ascii_case("connection: close");
    }
}

fn answer(stream: &mut TcpStream, root: &Path, name: &str) -> io::Result<()> {
    let plain = !name.contains("..") && !name.contains('/');
    let Some(mut file) = plain.then(|| File::open(root.join(name)).ok()).flatten() else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    let length = file.metadata()?.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    let mut block = head.into_bytes();
    block.resize(64 * 1024, 0);
    let mut filled = block.iter().position(|byte| *byte == 0).unwrap_or(0);
    loop {
        let read = file.read(&mut block[filled..])?;
        filled += read;
        if filled == 0 {
            return Ok(());
        }
        stream.write_all(&block[..filled])?;
        filled = 0;
    }
}
