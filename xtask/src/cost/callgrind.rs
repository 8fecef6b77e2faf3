//! Reads callgrind's files: the instructions executed in each function and everything it called.
//! Source: valgrind manual, "Callgrind Format Specification".

use std::collections::HashMap;

/// Inclusive instructions by function name. Functions of one name are one.
pub fn inclusive(text: &str) -> HashMap<String, u64> {
    let mut names: HashMap<&str, &str> = HashMap::new();
    let mut costs: HashMap<&str, u64> = HashMap::new();
    let mut current = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            current = resolve(name, &mut names);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            resolve(name, &mut names);
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            // "position cost": the function's own, or after "calls=" what was called.
            let cost = line.split_ascii_whitespace().nth(1).and_then(|cost| cost.parse().ok());
            *costs.entry(current).or_default() += cost.unwrap_or(0u64);
        }
    }
    costs.into_iter().map(|(name, cost)| (name.to_string(), cost)).collect()
}

/// "(7) name" defines, "(7)" refers.
fn resolve<'a>(text: &'a str, names: &mut HashMap<&'a str, &'a str>) -> &'a str {
    match text.split_once(' ') {
        Some((id, name)) => {
            names.insert(id, name);
            name
        }
        None => names.get(text).copied().unwrap_or(text),
    }
}

#[cfg(test)]
mod tests {
    use super::inclusive;

    #[test]
    fn own_and_called_instructions_are_added() {
        let text = "version: 1\nevents: Ir\n\nfl=(1) a.rs\nfn=(1) outer\n16 400\n+2 10\ncfl=(2) b.rs\n\
                    cfn=(2) inner\ncalls=3 50\n18 600\nfi=(3) c.rs\n* 5\n\nfn=(2)\n51 600\n";
        let costs = inclusive(text);
        assert_eq!(costs["outer"], 1015);
        assert_eq!(costs["inner"], 600);
    }
}
