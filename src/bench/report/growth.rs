//! Curves of growth, side by side.

use plotters::prelude::*;

use super::canvas::{
    AXIS, Area, Drawing, GRID, Outcome, caption, colour, legend, letters, short, span, ticks,
};
use crate::bench::measure::quantile;
use crate::bench::results::{Curve, Results};

/// The picture of the growth part.
pub(super) struct Picture<'a> {
    curves: &'a [Curve],
    machine: String,
}

impl<'a> Picture<'a> {
    pub(super) fn of(results: &'a Results) -> Option<Self> {
        let machine = results.machine.line();
        (!results.growth.is_empty()).then_some(Self { curves: &results.growth, machine })
    }

    fn lines(&self) -> usize {
        self.curves.len().div_ceil(COLUMNS)
    }
}

const COLUMNS: usize = 3;

impl Drawing for Picture<'_> {
    fn height(&self) -> u32 {
        110 + 330 * u32::try_from(self.lines()).unwrap_or(1)
    }

    fn draw<DB: DrawingBackend>(&self, area: &Area<DB>) -> Outcome<DB> {
        caption(
            area,
            "Growth (both axes logarithmic; bars from the least to the most)",
            (24, 14),
            24,
        )?;
        let mut names: Vec<&str> = Vec::new();
        for line in self.curves.iter().flat_map(|curve| &curve.lines) {
            if !names.contains(&line.name.as_str()) {
                names.push(&line.name);
            }
        }
        legend(area, &names, (24, 56))?;
        let height = i32::try_from(self.height()).unwrap_or(600);
        caption(area, &self.machine, (24, height - 26), 16)?;
        let cells = area.margin(80, 30, 6, 6).split_evenly((self.lines(), COLUMNS));
        for (cell, curve) in cells.iter().zip(self.curves) {
            one(cell, curve)?;
        }
        Ok(())
    }
}

fn one<DB: DrawingBackend>(area: &Area<DB>, curve: &Curve) -> Outcome<DB> {
    let points = || curve.lines.iter().flat_map(|line| &line.points);
    let xs = span(points().map(|(at, _)| *at));
    let ys = span(points().flat_map(|(_, samples)| samples.iter().copied()));
    let (at_x, at_y) = (ticks(&xs), ticks(&ys));
    let (xs, ys) = (xs.log_scale().with_key_points(at_x), ys.log_scale().with_key_points(at_y));
    let mut chart = ChartBuilder::on(area)
        .margin(6)
        .margin_right(16)
        .caption(&curve.what, letters(18))
        .x_label_area_size(44)
        .y_label_area_size(66)
        .build_cartesian_2d(xs, ys)?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(WHITE)
        .axis_style(AXIS)
        .label_style(letters(16))
        .axis_desc_style(letters(17))
        .x_desc(&curve.along)
        .y_desc(&curve.unit)
        .x_labels(6)
        .y_labels(6)
        .x_label_formatter(&|value| short(*value))
        .y_label_formatter(&|value| short(*value))
        .draw()?;
    for line in &curve.lines {
        let paint = colour(&line.name);
        let middle = line.points.iter().map(|(at, samples)| (*at, quantile(samples, 0.5)));
        // Nothing at all has no place along logarithms.
        let middle = middle.filter(|(_, value)| *value > 0.0);
        chart.draw_series(LineSeries::new(middle, paint.stroke_width(3)).point_size(4))?;
        for (at, samples) in line.points.iter().filter(|(_, samples)| samples.len() > 1) {
            let [low, high] = [0.0, 1.0].map(|part| quantile(samples, part));
            let bar = [(*at, low), (*at, high)];
            chart.draw_series(LineSeries::new(bar, paint.mix(0.5).stroke_width(2)))?;
        }
    }
    Ok(())
}
