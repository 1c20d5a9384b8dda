//! A plane with two axes: points with names, lines through values, slopes.

use super::{Canvas, MARGIN, WIDTH};

/// One axis.
pub struct Axis<'a> {
    /// What it counts, with its unit.
    pub title: &'a str,
    /// From and to.
    pub range: (f64, f64),
    /// Whether equal distances are equal ratios.
    pub logarithmic: bool,
    /// How a value is written at a tick.
    pub written: fn(f64) -> String,
}

impl Axis<'_> {
    /// Where a value lies between the ends, 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let (from, to) = self.range;
        match self.logarithmic {
            true => (value / from).log10() / (to / from).log10(),
            false => (value - from) / (to - from),
        }
    }

    /// Round values inside the range: about six, or all powers of ten (of two, where there is less than a ten).
    fn ticks(&self) -> Vec<f64> {
        let (from, to) = self.range;
        // Rounding must not lose an end.
        let inside = |value: &f64| (-1e-9..=1.0 + 1e-9).contains(&self.share(*value));
        if self.logarithmic {
            let base: f64 = if to / from >= 1000.0 { 10.0 } else { 2.0 };
            let (first, last) = (from.log(base).floor() as i32, to.log(base).ceil() as i32);
            return (first..=last).map(|power| base.powi(power)).filter(inside).collect();
        }
        let rough = (to - from) / 8.0;
        let unit = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * unit).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        ((from / step).ceil() as i64..=(to / step).floor() as i64).map(|times| times as f64 * step).collect()
    }
}

/// A place for values, on a canvas.
pub struct Plane<'a> {
    x: Axis<'a>,
    y: Axis<'a>,
    top: f64,
    /// Boxes that names have taken: left, top, right, bottom.
    taken: Vec<[f64; 4]>,
}

const LEFT: f64 = MARGIN + 62.0;
const RIGHT: f64 = WIDTH - MARGIN - 110.0;
const HEIGHT: f64 = 420.0;
/// About what a character of a name takes.
const CHARACTER: f64 = 6.8;
const LETTER: f64 = 12.0;

impl<'a> Plane<'a> {
    /// Draws the axes with their ticks, and takes its place on the canvas.
    pub fn on(canvas: &mut Canvas, x: Axis<'a>, y: Axis<'a>) -> Self {
        let plane = Self { x, y, top: canvas.top + 28.0, taken: Vec::new() };
        let bottom = plane.top + HEIGHT;
        canvas.text("note", MARGIN, plane.top - 10.0, plane.y.title);
        for tick in plane.y.ticks() {
            let y = plane.place(plane.x.range.0, tick).1;
            canvas.line("grid", (LEFT, y), (RIGHT, y));
            canvas.text("note end", LEFT - 6.0, y + 4.0, &(plane.y.written)(tick));
        }
        for tick in plane.x.ticks() {
            let x = plane.place(tick, plane.y.range.0).0;
            canvas.line("grid", (x, plane.top), (x, bottom));
            canvas.text("note middle", x, bottom + 16.0, &(plane.x.written)(tick));
        }
        canvas.text("note middle", (LEFT + RIGHT) / 2.0, bottom + 36.0, plane.x.title);
        canvas.top = bottom + 64.0;
        plane
    }

    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        (LEFT + self.x.share(x) * (RIGHT - LEFT), self.top + (1.0 - self.y.share(y)) * HEIGHT)
    }

    /// A point with its name beside it, where no other name stands if there is such a place.
    pub fn point(&mut self, canvas: &mut Canvas, class: &str, (x, y): (f64, f64), name: &str) {
        let (x, y) = self.place(x, y);
        self.dot(canvas, class, (x, y));
        self.write(canvas, "figure", &beside((x, y), name), name);
    }

    /// Points of which some have no room for their names: those stay without.
    pub fn crowd(&mut self, canvas: &mut Canvas, class: &str, points: &[((f64, f64), String)]) {
        let places: Vec<(f64, f64)> = points.iter().map(|((x, y), _)| self.place(*x, *y)).collect();
        // No name covers a point, whichever comes first.
        places.iter().for_each(|place| self.dot(canvas, class, *place));
        for (place, (_, name)) in places.iter().zip(points) {
            let free: Vec<(f64, f64)> =
                beside(*place, name).into_iter().filter(|at| self.is_free(*at, width(name))).take(1).collect();
            if !free.is_empty() {
                self.write(canvas, "figure", &free, name);
            }
        }
    }

    fn dot(&mut self, canvas: &mut Canvas, class: &str, (x, y): (f64, f64)) {
        canvas.put(format_args!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\"/>"));
        self.taken.push([x - 5.0, y - 5.0, x + 5.0, y + 5.0]);
    }

    /// A line through values, named where it ends.
    pub fn line(&mut self, canvas: &mut Canvas, hue: f64, values: &[(f64, f64)], name: &str) {
        let path: Vec<String> =
            values.iter().map(|(x, y)| self.place(*x, *y)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        // Half light, so that it shows on white as on black.
        canvas.put(format_args!(
            "<polyline class=\"line\" style=\"stroke: hsl({hue:.0} 65% 50%)\" points=\"{}\"/>",
            path.join(" ")
        ));
        let Some((x, y)) = values.last().map(|(x, y)| self.place(*x, *y)) else { return };
        // Up or down by lines until it is free.
        let shifts = (0..40).map(|step| f64::from((step + 1) / 2) * LETTER * if step % 2 == 0 { 1.0 } else { -1.0 });
        let places: Vec<(f64, f64)> = shifts.map(|shift| (x + 6.0, y + 4.0 + shift)).collect();
        self.write(canvas, "figure", &places, name);
    }

    /// An upright line at `x` with its name at the top: a target, a limit.
    pub fn upright(&mut self, canvas: &mut Canvas, x: f64, name: &str) {
        let ((x, top), (_, bottom)) = (self.place(x, self.y.range.1), self.place(x, self.y.range.0));
        canvas.line("target", (x, top), (x, bottom));
        let place = (x - width(name) / 2.0, top - 5.0);
        self.write(canvas, "note", &[place], name);
    }

    /// The straight line y = `slope` × x, which on two logarithmic axes is one as well, named at its upper end.
    pub fn slope(&mut self, canvas: &mut Canvas, slope: f64, name: &str) {
        let ((left, right), (low, high)) = (self.x.range, self.y.range);
        let (from, to) = (left.max(low / slope), right.min(high / slope));
        if from >= to {
            return;
        }
        canvas.line("slope", self.place(from, slope * from), self.place(to, slope * to));
        let (x, y) = self.place(to, slope * to);
        // Rooflines may end side by side: then the later name moves on along the edge.
        let shifts = (0..20).map(|step| f64::from(step) * LETTER / 2.0);
        let beside = |shift: f64| match to < right {
            true => (x - width(name) / 2.0 + shift, y - 5.0),
            false => (x + 6.0, y + 4.0 + shift),
        };
        let places: Vec<(f64, f64)> = shifts.map(beside).collect();
        self.write(canvas, "note", &places, name);
    }

    fn is_free(&self, place: (f64, f64), width: f64) -> bool {
        let [left, top, right, bottom] = area(place, width);
        let apart = |other: &[f64; 4]| right < other[0] || other[2] < left || bottom < other[1] || other[3] < top;
        left > LEFT && right < WIDTH && top > self.top - 2.0 * LETTER && self.taken.iter().all(apart)
    }

    /// Writes a name at the first of `places` that is free, or at the first of all.
    fn write(&mut self, canvas: &mut Canvas, class: &str, places: &[(f64, f64)], name: &str) {
        let width = width(name);
        let (x, y) = places.iter().copied().find(|place| self.is_free(*place, width)).unwrap_or(places[0]);
        canvas.text(class, x, y, name);
        self.taken.push(area((x, y), width));
    }
}

/// Where the name of a point may stand.
fn beside((x, y): (f64, f64), name: &str) -> [(f64, f64); 4] {
    let width = width(name);
    [(x + 9.0, y + 4.0), (x - 9.0 - width, y + 4.0), (x - width / 2.0, y - 10.0), (x - width / 2.0, y + 19.0)]
}

/// About what a name takes.
fn width(name: &str) -> f64 {
    name.chars().count() as f64 * CHARACTER
}

/// What a text of this width takes, its baseline beginning at a place.
fn area((x, y): (f64, f64), width: f64) -> [f64; 4] {
    [x, y - LETTER + 2.0, x + width, y + 1.0]
}

/// The range of `values` from 0, with some air above.
pub fn from_zero(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let most = values.fold(0.0, f64::max);
    (0.0, if most > 0.0 { most * 1.08 } else { 1.0 })
}

/// The range of `values`, all above 0, with some air around on a logarithmic axis.
pub fn around(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let (least, most) = (values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max));
    (least / 1.6, most * 1.6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(range: (f64, f64), logarithmic: bool) -> Axis<'static> {
        Axis { title: "", range, logarithmic, written: |value| value.to_string() }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(axis((0.0, 52.0), false).ticks(), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(axis((0.3, 2000.0), true).ticks(), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(axis((1024.0, 8192.0), true).ticks(), [1024.0, 2048.0, 4096.0, 8192.0]);
    }

    #[test]
    fn names_do_not_cover_each_other() {
        let mut canvas = Canvas::new();
        let mut plane = Plane::on(&mut canvas, axis((0.0, 10.0), false), axis((0.0, 10.0), false));
        for name in ["one", "two", "three"] {
            plane.point(&mut canvas, "bar", (5.0, 5.0), name);
        }
        let crowd: Vec<((f64, f64), String)> =
            (0..9).map(|n| ((2.0 + 0.01 * f64::from(n), 2.0), format!("point {n}"))).collect();
        let before = plane.taken.len();
        plane.crowd(&mut canvas, "bar", &crowd);
        let named = plane.taken.split_off(before).len() - crowd.len();
        assert!((1..9).contains(&named), "{named} of nine points at one place have room for their names");
        let names: Vec<&[f64; 4]> = plane.taken.iter().skip(1).step_by(2).collect();
        for (index, first) in names.iter().enumerate() {
            for second in &names[index + 1..] {
                let apart =
                    first[2] < second[0] || second[2] < first[0] || first[3] < second[1] || second[3] < first[1];
                assert!(apart, "{first:?} {second:?}");
            }
        }
    }
}
