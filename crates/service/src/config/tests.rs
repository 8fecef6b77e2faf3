//! Tests of the configuration: what is accepted, and what every refusal says.

use super::*;

fn load(text: &str) -> Result<Config, Error> {
    Config::from_text(text, &Flags::default(), Path::new("/run/haypile"))
}

#[test]
fn defaults_are_complete() {
    let config = load("").unwrap();
    assert_eq!(config.link, LinkChoice::Tap(None));
    assert_eq!(config.mtu, MTU_DEFAULT);
    assert_eq!(config.limits, ServiceLimits::default());
    assert_eq!(config.plan, Plan::combined());
    assert_eq!(config.control_dir, Path::new("/run/haypile"));
}

#[test]
fn a_whole_file_is_read() {
    let config = load(
        r#"
link = "tap:pile0"
addresses = ["198.18.0.1/24", "2001:2::1/64"]
host_addresses = ["198.18.0.254/24"]
gateways = ["198.18.0.254"]
mtu = 4000
offload = "checksum"
plan = "TS1LS1CM1"
steer = "low12"
control_dir = "/tmp/pile"

[[route]]
destination = "10.0.0.0/8"
gateway = "198.18.0.253"

[limits]
claim_timeout_ms = 50
memory_per_domain_mib = 128
"#,
    )
    .unwrap();
    assert_eq!(config.link, LinkChoice::Tap(Some("pile0".into())));
    assert_eq!(config.addresses.len(), 2);
    assert_eq!(config.routes.len(), 2);
    assert_eq!(config.limits.claim_timeout_us, 50_000);
    assert_eq!(config.steer.to_string(), "low12");
    assert_eq!(config.limits.memory_per_domain, 128 << 20);
    assert_eq!(config.control_dir, Path::new("/tmp/pile"));
}

#[test]
fn an_address_that_is_alone_in_its_network_takes_any_gateway_of_its_family() {
    let with = |address: &str, gateway: &str| {
        let text = format!("addresses = [\"{address}\"]\ngateways = [\"{gateway}\"]\n");
        load(&(text + "link = \"packet:eth1\"\n")).map(|config| config.routes.len())
    };
    assert_eq!(with("10.0.0.5/32", "10.0.0.1").unwrap(), 1);
    assert_eq!(with("fd00::5/128", "fd00::1").unwrap(), 1);
    for (address, gateway) in [("10.0.0.5/32", "fd00::1"), ("10.0.0.5/31", "10.0.0.1")] {
        let error = with(address, gateway).unwrap_err().to_string();
        assert!(error.contains("not in the network of any address"), "{error}");
    }
}

#[test]
fn flags_win_over_the_file() {
    let flags = Flags {
        addresses: vec!["198.18.9.1/24".into()],
        link: Some("tap:other".into()),
        ..Flags::default()
    };
    let text = "link = \"tap:pile0\"\naddresses = [\"198.18.0.1/24\"]\n";
    let config = Config::from_text(text, &flags, Path::new("/x")).unwrap();
    assert_eq!(config.link, LinkChoice::Tap(Some("other".into())));
    assert_eq!(config.addresses.len(), 1);
    assert_eq!(config.addresses[0].to_string(), "198.18.9.1/24");
}

#[test]
fn every_refusal_is_one_line_and_says_where() {
    for (text, expected) in [
        ("mtu = 1500\nspeed = 3\n", "line 2: unknown field `speed`"),
        ("[limits]\nprocess = 3\n", "line 2: unknown field `process`"),
        ("mtu = \"big\"\n", "line 1: invalid type"),
        ("mtu = 1500\n\nlink = \n", "line 3"),
        ("link = \"xdp:eth0\"\n", "kind xdp"),
        ("link = \"eth0\"\n", "has no kind"),
        ("link = \"tap:a-name-that-is-too-long\"\n", "not a name for an interface"),
        ("link = \"packet:a/b\"\n", "not a name for an interface"),
        ("link = \"packet:eth1\"\n", "a service on an interface"),
        ("link = \"wire:\"\nhost_addresses = [\"10.0.0.1/8\"]\n", "leave --host-addr out"),
        ("addresses = [\"198.18.0.1\"]\n", "not an address with a prefix"),
        ("addresses = [\"198.18.0.1/33\"]\n", "not an address with a prefix"),
        ("gateways = [\"198.18.0.254\"]\n", "not in the network of any address"),
        ("queues = 0\n", "choose 1 to 256"),
        ("offload = \"all\"\n", "choose none, checksum or segmentation"),
        ("mtu = 576\n", "smaller than IPv6 allows"),
        ("mtu = 65522\n", "larger than a frame"),
        ("plan = \"TS1\"\n", "LS is missing"),
        ("steer = \"random\"\n", "choose hash or low12"),
        ("[limits]\nmemory_per_domain_mib = 1\n", "choose 64 to"),
        ("[[route]]\ndestination = \"10.0.0.0/8\"\ngateway = \"::1\"\n", "different families"),
    ] {
        let error = load(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text:?}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn links_are_named_by_kind() {
    let parse = |text: &str| parse_link(text, None).unwrap();
    assert_eq!(parse("packet:"), LinkChoice::Packet(None));
    assert_eq!(parse("packet:eth1.5"), LinkChoice::Packet(Some("eth1.5".into())));
    assert_eq!(parse("wire:"), LinkChoice::Alone);
    assert!(parse("tap:").has_host_end() && parse("packet:").has_host_end());
    assert!(!parse("packet:eth1").has_host_end() && !parse("wire:").has_host_end());
    let alone = load("link = \"wire:\"\naddresses = [\"198.18.0.2/24\"]").unwrap();
    assert!(alone.host_addresses.is_empty());
}

#[test]
fn the_hosts_end_gets_another_address_of_each_network() {
    let config = load("addresses = [\"198.18.0.2/24\", \"10.0.0.1/30\", \"2001:2::1/64\"]");
    let hosts: Vec<String> =
        config.unwrap().host_addresses.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["198.18.0.1/24", "10.0.0.2/30", "2001:2::2/64"]);
    assert!(load("addresses = [\"198.18.0.2/32\"]").unwrap().host_addresses.is_empty());
    let two = "addresses = [\"198.18.0.2/24\", \"198.18.0.3/24\", \"198.18.0.1/24\"]";
    let hosts = load(two).unwrap().host_addresses;
    assert!(hosts.is_empty(), "none of the first is free: {hosts:?}");
    let two =
        "addresses = [\"198.18.0.2/24\", \"198.18.0.3/24\", \"2001:2::2/64\", \"2001:2::3/64\"]";
    let hosts: Vec<String> =
        load(two).unwrap().host_addresses.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["198.18.0.1/24", "2001:2::1/64"]);
    for (own, host) in [
        ("198.18.0.2/31", "198.18.0.3/31"),
        ("198.18.0.3/31", "198.18.0.2/31"),
        ("2001:2::5/127", "2001:2::4/127"),
    ] {
        let config = load(&format!("addresses = [\"{own}\"]")).unwrap();
        let hosts: Vec<String> = config.host_addresses.iter().map(ToString::to_string).collect();
        assert_eq!(hosts, [host], "{own}");
    }
    for (wrong, why) in [
        (
            "addresses = [\"198.18.0.2/24\"]\nhost_addresses = [\"198.18.0.2/24\"]",
            "at the same time",
        ),
        ("addresses = [\"198.18.0.2/24\", \"198.18.0.2/16\"]", "given twice"),
        ("addresses = [\"127.0.0.5/8\"]", "loopback"),
        ("addresses = [\"ff02::1/64\"]", "not an address of one host"),
    ] {
        let error = load(wrong).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(why), "{error}");
    }
    let given = "addresses = [\"198.18.0.2/24\"]\nhost_addresses = [\"198.18.0.9/24\"]";
    assert_eq!(load(given).unwrap().host_addresses[0].to_string(), "198.18.0.9/24");
}

#[test]
fn a_missing_file_says_what_to_do() {
    let error = Config::load(
        Some(Path::new("/nonexistent/haypile.toml")),
        &Flags::default(),
        Path::new("/x"),
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("--config"), "{error}");
}

#[test]
fn wires_and_faults_are_named_like_links() {
    let wires = Some(PathBuf::from("/run/x/wires"));
    let load = |link: &str, addresses: &[&str], fault: Option<&str>| {
        let flags = Flags {
            link: Some(link.into()),
            addresses: addresses.iter().map(|text| (*text).to_string()).collect(),
            fault: fault.map(str::to_string),
            wires: wires.clone(),
            ..Flags::default()
        };
        Config::from_text("", &flags, Path::new("/run/x"))
    };
    let config = load("wire:a-1", &["10.9.0.1/24"], Some("loss=1%")).unwrap();
    let LinkChoice::Wire { directory, name } = &config.link else { panic!("{:?}", config.link) };
    assert_eq!((directory.as_path(), name.as_str()), (Path::new("/run/x/wires"), "a-1"));
    assert!(config.host_addresses.is_empty(), "no host is at the other end");
    let (spec, seed) = config.fault.unwrap();
    assert_eq!((spec.outgoing.loss_ppm, seed), (10_000, 1));
    for (link, addresses, fault, why) in [
        ("wire:a/b", &["10.9.0.1/24"][..], None, "not a name for a wire"),
        ("wire:a", &[], None, "has no address"),
        ("wave:a", &["10.9.0.1/24"], None, "links of kind wave are not known"),
        ("wire:a", &["10.9.0.1/24"], Some("loss=2"), "is no chance"),
    ] {
        let error = load(link, addresses, fault).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn hosts_of_very_large_networks_have_addresses_that_hosts_have() {
    for (own, host) in [
        ("11.1.2.3/0", "11.1.2.1/24"),
        ("11.1.2.1/0", "11.1.2.2/24"),
        ("11.1.2.3/4", "11.1.2.1/24"),
        ("11.1.2.3/8", "11.0.0.1/8"),
        ("250.1.2.3/3", "250.1.2.1/24"),
        ("240.1.2.3/24", "240.1.2.1/24"),
        ("2001:2::2/0", "2001:2::1/64"),
    ] {
        let config = load(&format!("addresses = [\"{own}\"]")).unwrap();
        let hosts: Vec<String> = config.host_addresses.iter().map(ToString::to_string).collect();
        assert_eq!(hosts, [host], "{own}");
    }
    for own in ["0.1.2.3/24", "255.255.255.255/24", "224.0.0.5/24"] {
        let error = load(&format!("addresses = [\"{own}\"]")).unwrap_err().to_string();
        assert!(error.contains("not an address of one host"), "{own}: {error}");
    }
}
