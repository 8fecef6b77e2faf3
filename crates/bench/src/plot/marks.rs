//! What tells series apart without colours: dashes, marks, greys. Called by `plot`.

/// Dashes of a line.
pub(super) fn dash(index: usize) -> &'static str {
    const DASHES: [&str; 5] = ["none", "7 3", "2 3", "9 3 2 3", "14 4"];
    DASHES[index % DASHES.len()]
}

/// A mark at a place.
pub(super) fn mark(index: usize, (x, y): (f64, f64)) -> String {
    // The second time round they are filled.
    let fill = if (index / 6).is_multiple_of(2) { "white" } else { "black" };
    let style = format!("fill=\"{fill}\" stroke=\"black\" stroke-width=\"1.2\"");
    let path = |path: String| format!("<path d=\"{path}\" {style}/>\n");
    match index % 6 {
        0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.6\" {style}/>\n"),
        1 => path(format!("M{:.1} {:.1}h7v7h-7z", x - 3.5, y - 3.5)),
        2 => path(format!("M{:.1} {:.1}l4.2 7.4h-8.4z", x, y - 4.6)),
        3 => path(format!("M{:.1} {:.1}l4.6 4.6l-4.6 4.6l-4.6 -4.6z", x, y - 4.6)),
        4 => path(format!("M{:.1} {:.1}l4.2 -7.4h-8.4z", x, y + 4.6)),
        _ => path(format!("M{:.1} {:.1}l7 7M{:.1} {:.1}l-7 7", x - 3.5, y - 3.5, x + 3.5, y - 3.5)),
    }
}

/// The filling of a bar or an area: neighbours differ, and areas bear their number besides.
pub(super) fn grey(index: usize) -> &'static str {
    const GREYS: [&str; 4] = ["#c8c8c8", "#ffffff", "#909090", "#e8e8e8"];
    GREYS[index % GREYS.len()]
}
