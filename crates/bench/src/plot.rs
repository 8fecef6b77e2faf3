//! Plots as SVG, written by hand: lines with marks over linear or logarithmic axes, bars in groups,
//! stacked areas. Black and white: series differ by dash and mark, bars by their grey, areas by
//! theirs and by their number.
//! Called by `experiments`; nothing is measured here.

mod axis;
mod marks;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;

use axis::{Axis, ticks};
use marks::{dash, grey, mark};

/// Width of a plot, pixels.
const WIDTH: f64 = 760.0;
/// Height of a plot without its legend, pixels.
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 92.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 62.0;
/// A line of the legend.
const LEGEND_LINE: f64 = 20.0;
const LEGEND_COLUMNS: usize = 3;
/// Before the name in the legend, and about what a letter takes there.
const LEGEND_MARK: f64 = 42.0;
const LETTER: f64 = 6.6;

/// How an axis runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps; starts at 0.
    Linear,
    /// Equal factors; what is not above 0 is left out.
    Log,
    /// Percentiles, so that 90, 99 and 99.9 are equally far apart: the logarithm of what is left.
    Tail,
}

/// How series are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Lines with marks.
    Lines,
    /// Groups of bars: the x of a point is the number of its group.
    Bars,
    /// Areas upon each other, the first at the bottom. Points of all series have the same x.
    Stacked,
}

/// One series.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Points, x ascending.
    pub points: Vec<(f64, f64)>,
}

/// One plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    /// Over it.
    pub title: String,
    /// A second line, smaller.
    pub subtitle: String,
    /// Names of the axes, with units: x, then y.
    pub labels: [String; 2],
    /// How the axes run: x, then y.
    pub scales: [Scale; 2],
    /// How series are drawn.
    pub kind: Kind,
    /// Names of groups of bars; empty otherwise.
    pub groups: Vec<String>,
    /// The series, in the order of the legend.
    pub series: Vec<Series>,
}

impl Plot {
    /// Lines without any yet.
    pub fn lines(title: &str, subtitle: &str, labels: [&str; 2], scales: [Scale; 2]) -> Plot {
        Plot {
            title: title.into(),
            subtitle: subtitle.into(),
            labels: labels.map(str::to_string),
            scales,
            kind: Kind::Lines,
            groups: Vec::new(),
            series: Vec::new(),
        }
    }

    /// Adds a series.
    pub fn add(&mut self, name: &str, points: Vec<(f64, f64)>) {
        self.series.push(Series { name: name.into(), points });
    }

    /// Writes it to a file.
    ///
    /// # Errors
    /// When that is impossible.
    pub fn write(&self, path: &Path) -> Result<(), String> {
        fs::write(path, self.svg())
            .map_err(|error| format!("cannot write {}: {error}", path.display()))
    }

    /// The picture.
    pub fn svg(&self) -> String {
        let rows = self.series.len().div_ceil(self.legend_columns());
        let height = HEIGHT + LEGEND_LINE * rows as f64;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        text(&mut out, (WIDTH / 2.0, 24.0), "middle", 16, &self.title);
        text(&mut out, (WIDTH / 2.0, 44.0), "middle", 12, &self.subtitle);
        let [x, y] = self.axes();
        self.draw_axes(&mut out, &x, &y);
        match self.kind {
            Kind::Lines => self.draw_lines(&mut out, &x, &y),
            Kind::Bars => self.draw_bars(&mut out, &x, &y),
            Kind::Stacked => self.draw_stacked(&mut out, &x, &y),
        }
        self.draw_legend(&mut out);
        out + "</svg>\n"
    }

    fn axes(&self) -> [Axis; 2] {
        let points = || self.series.iter().flat_map(|series| series.points.iter());
        let x = Axis::over(
            self.scales[0],
            points().map(|point| point.0).collect(),
            [LEFT, WIDTH - RIGHT],
        );
        let heights = match self.kind {
            Kind::Stacked => self.sums(),
            _ => points().map(|point| point.1).collect(),
        };
        let y = Axis::over(self.scales[1], heights, [HEIGHT - BOTTOM, TOP]);
        match self.kind {
            // Half a group beside the first and the last.
            Kind::Bars => {
                let last = self.groups.len().max(1) as f64 - 0.5;
                [Axis { scale: Scale::Linear, range: [-0.5, last], ..x }, y]
            }
            _ => [x.at_values(points().map(|point| point.0)), y],
        }
    }

    /// Heights of all areas together.
    fn sums(&self) -> Vec<f64> {
        let count = self.series.iter().map(|series| series.points.len()).max().unwrap_or(0);
        let at = |index: usize| {
            self.series
                .iter()
                .filter_map(move |series| series.points.get(index))
                .map(|point| point.1)
        };
        (0..count).map(|index| at(index).sum()).collect()
    }

    fn draw_axes(&self, out: &mut String, x: &Axis, y: &Axis) {
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for (value, name) in ticks(y) {
            let Some(at) = y.place(value) else { continue };
            line(out, [LEFT, at, right, at], "#ccc");
            text(out, (LEFT - 8.0, at + 4.0), "end", 12, &name);
        }
        let named = match self.kind {
            Kind::Bars => {
                let names = self.groups.iter().enumerate();
                names.map(|(index, name)| (index as f64, name.clone())).collect()
            }
            _ => ticks(x),
        };
        // Long names of groups take turns on two lines.
        let crowded = named.iter().map(|(_, name)| name.len()).sum::<usize>() > 90;
        for (index, (value, name)) in named.iter().enumerate() {
            let Some(at) = x.place(*value) else { continue };
            line(out, [at, bottom, at, bottom + 5.0], "black");
            let lower = if crowded && index % 2 == 1 { 14.0 } else { 0.0 };
            text(out, (at, bottom + 20.0 + lower), "middle", 12, name);
        }
        line(out, [LEFT, bottom, right, bottom], "black");
        line(out, [LEFT, bottom, LEFT, TOP], "black");
        text(out, ((LEFT + right) / 2.0, bottom + 48.0), "middle", 13, &self.labels[0]);
        let middle = (TOP + bottom) / 2.0;
        *out += &format!(
            "<text x=\"22\" y=\"{middle:.1}\" text-anchor=\"middle\" \
             transform=\"rotate(-90 22 {middle:.1})\">{}</text>\n",
            escape(&self.labels[1])
        );
    }

    fn draw_lines(&self, out: &mut String, x: &Axis, y: &Axis) {
        for (index, series) in self.series.iter().enumerate() {
            let place = |point: &(f64, f64)| Some((x.place(point.0)?, y.place(point.1)?));
            let places: Vec<(f64, f64)> = series.points.iter().filter_map(place).collect();
            let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            *out += &format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"black\" stroke-width=\"1.4\" \
                 stroke-dasharray=\"{}\"/>\n",
                path.join(" "),
                dash(index)
            );
            // So many marks that lines can be told apart, and no more.
            let step = places.len().div_ceil(12).max(1);
            for (number, at) in places.iter().enumerate() {
                if number % step == (index * 2) % step.max(1) {
                    *out += &mark(index, *at);
                }
            }
        }
    }

    fn draw_bars(&self, out: &mut String, x: &Axis, y: &Axis) {
        let group = (x.pixels[1] - x.pixels[0]) / self.groups.len().max(1) as f64;
        let width = group * 0.8 / self.series.len().max(1) as f64;
        let bottom = y.pixels[0];
        for (index, series) in self.series.iter().enumerate() {
            for (number, height) in &series.points {
                let (Some(middle), Some(top)) = (x.place(*number), y.place(*height)) else {
                    continue;
                };
                let left = middle - group * 0.4 + width * index as f64;
                *out += &format!(
                    "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{:.1}\" \
                     fill=\"{}\" stroke=\"black\"/>\n",
                    (bottom - top).max(0.0),
                    grey(index)
                );
            }
        }
    }

    fn draw_stacked(&self, out: &mut String, x: &Axis, y: &Axis) {
        let count = self.series.iter().map(|series| series.points.len()).max().unwrap_or(0);
        let mut below = vec![0.0; count];
        let mut numbers = String::new();
        for (index, series) in self.series.iter().enumerate() {
            let mut upper = Vec::new();
            let mut lower = Vec::new();
            for (point, below) in series.points.iter().zip(&mut below) {
                let base = *below;
                *below += point.1;
                let (Some(at), Some(from), Some(to)) =
                    (x.place(point.0), y.place(base), y.place(*below))
                else {
                    continue;
                };
                upper.push(format!("{at:.1},{to:.1}"));
                lower.push(format!("{at:.1},{from:.1}"));
            }
            lower.reverse();
            // Drawn after all areas, so that none covers it.
            let middle = series.points.len() / 2;
            if let Some((point, top)) = series.points.get(middle).zip(below.get(middle))
                && let Some(place) = x.place(point.0).zip(y.place(top - point.1 / 2.0))
            {
                text(&mut numbers, (place.0, place.1 + 4.0), "middle", 11, &index.to_string());
            }
            *out += &format!(
                "<polygon points=\"{} {}\" fill=\"{}\" stroke=\"black\" stroke-width=\"0.8\"/>\n",
                upper.join(" "),
                lower.join(" "),
                grey(index)
            );
        }
        *out += &numbers;
    }

    /// As many as the longest name leaves room for.
    fn legend_columns(&self) -> usize {
        let longest = self.series.iter().map(|series| series.name.chars().count()).max();
        let wide = LEGEND_MARK + LETTER * longest.unwrap_or_default() as f64;
        (((WIDTH - LEFT - RIGHT) / wide) as usize).clamp(1, LEGEND_COLUMNS)
    }

    fn draw_legend(&self, out: &mut String) {
        let columns = self.legend_columns();
        let column = (WIDTH - LEFT - RIGHT) / columns as f64;
        for (index, series) in self.series.iter().enumerate() {
            let left = LEFT + column * (index % columns) as f64;
            let at = HEIGHT + LEGEND_LINE * (index / columns) as f64 + 2.0;
            if self.kind == Kind::Lines {
                *out += &format!(
                    "<line x1=\"{left:.1}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" \
                     stroke=\"black\" stroke-width=\"1.4\" stroke-dasharray=\"{}\"/>\n",
                    left + 36.0,
                    dash(index)
                );
                *out += &mark(index, (left + 18.0, at));
            } else {
                *out += &format!(
                    "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"36\" height=\"12\" fill=\"{}\" \
                     stroke=\"black\"/>\n",
                    at - 6.0,
                    grey(index)
                );
                if self.kind == Kind::Stacked {
                    text(out, (left + 18.0, at + 4.0), "middle", 11, &index.to_string());
                }
            }
            text(out, (left + LEGEND_MARK, at + 4.0), "start", 12, &series.name);
        }
    }
}

fn line(out: &mut String, [x1, y1, x2, y2]: [f64; 4], colour: &str) {
    *out += &format!(
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>\n"
    );
}

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, size: u32, words: &str) {
    *out += &format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{}</text>\n",
        escape(words)
    );
}

fn escape(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
