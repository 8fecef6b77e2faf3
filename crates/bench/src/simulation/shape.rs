//! Plans for the simulation in the paper's notation (PIKA, section 5.4): `TS8LS8CM8`, `TS8LS8+CM2`,
//! `TS8LS8CM4`, `TS8+LS4+CM1`. Called by the experiments; `world` asks who sits where.

use std::fmt;

/// Which process (a station of the simulation) has which component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    text: String,
    /// Station of each transport server.
    pub transports: Vec<usize>,
    /// Station of each link server.
    pub links: Vec<usize>,
    /// Station of each connection manager.
    pub managers: Vec<usize>,
    /// How many stations there are.
    pub stations: usize,
}

impl Shape {
    /// Every server has all components.
    pub fn combined(servers: usize) -> Shape {
        let all: Vec<usize> = (0..servers.max(1)).collect();
        Shape {
            text: format!("TS{servers}LS{servers}CM{servers}"),
            transports: all.clone(),
            links: all.clone(),
            managers: all,
            stations: servers.max(1),
        }
    }

    /// Reads the paper's notation.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn parse(text: &str) -> Result<Shape, String> {
        let wrong = |why: &str| format!("plan {text}: {why}; for example TS8LS8CM8 or TS8LS8+CM2");
        let mut shape = Shape {
            text: text.to_string(),
            transports: Vec::new(),
            links: Vec::new(),
            managers: Vec::new(),
            stations: 0,
        };
        for group in text.split('+') {
            let parts = components(group).ok_or_else(|| wrong("not component and number"))?;
            let most = parts.iter().map(|(_, count)| *count).max().unwrap_or(0);
            for (name, count) in parts {
                let place = match name {
                    "TS" => &mut shape.transports,
                    "LS" => &mut shape.links,
                    "CM" => &mut shape.managers,
                    _ => return Err(wrong("components are TS, LS and CM")),
                };
                if !place.is_empty() {
                    return Err(wrong("a component may be given once"));
                }
                place.extend(shape.stations..shape.stations + count);
            }
            shape.stations += most;
        }
        let missing =
            [&shape.transports, &shape.links, &shape.managers].map(|them| them.is_empty());
        if missing.contains(&true) {
            return Err(wrong("it needs TS, LS and CM"));
        }
        Ok(shape)
    }

    /// The connection manager of a transport server: its own where it has one.
    pub fn manager_of(&self, transport: usize) -> usize {
        let station = self.transports[transport];
        let own = self.managers.iter().position(|at| *at == station);
        own.unwrap_or(transport % self.managers.len())
    }

    /// The link server of a transport server: its own where it has one.
    pub fn link_of(&self, transport: usize) -> usize {
        let station = self.transports[transport];
        let own = self.links.iter().position(|at| *at == station);
        own.unwrap_or(transport % self.links.len())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

/// `TS8LS8` as names with numbers.
fn components(group: &str) -> Option<Vec<(&str, usize)>> {
    const MOST: usize = 1024;
    let mut parts = Vec::new();
    let mut rest = group;
    while !rest.is_empty() {
        let (name, after) = rest.split_at_checked(2)?;
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        let count: usize = after[..digits].parse().ok()?;
        parts.push((name, (1..=MOST).contains(&count).then_some(count)?));
        rest = &after[digits..];
    }
    (!parts.is_empty()).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_notation_is_read() {
        assert_eq!(Shape::parse("TS2LS2CM2").map(|shape| shape.stations), Ok(2));
        assert_eq!(Shape::parse("TS8LS8CM8"), Ok(Shape::combined(8)));
        let split = Shape::parse("TS2+LS2+CM1").expect("right");
        assert_eq!((split.stations, split.links, split.managers), (5, vec![2, 3], vec![4]));
        let subset = Shape::parse("TS4LS4CM2").expect("right");
        let managers: Vec<usize> = (0..4).map(|server| subset.manager_of(server)).collect();
        assert_eq!((subset.stations, managers), (4, vec![0, 1, 0, 1]));
        let few = Shape::parse("TS4CM4+LS2").expect("right");
        assert_eq!((few.link_of(1), few.link_of(2), few.links), (1, 0, vec![4, 5]));
    }

    #[test]
    fn nonsense_is_refused() {
        for wrong in [
            "",
            "TS",
            "TS1",
            "TS1LS1",
            "TS0LS1CM1",
            "TS1LS1CMx",
            "XX1",
            "TS1LS1CM1+TS1",
            "TS9999LS1CM1",
        ] {
            assert!(Shape::parse(wrong).is_err(), "{wrong}");
        }
    }
}
