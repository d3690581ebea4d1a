//! How long single operations take: what part of them takes at most how long.

use plotters::prelude::*;

use super::canvas::{
    AXIS, Area, Drawing, GRID, Outcome, caption, colour, legend, letters, short, span, ticks,
};
use crate::bench::results::{Latency, Results};

/// The picture of the latencies.
pub(super) struct Picture<'a> {
    latencies: &'a [Latency],
    machine: String,
}

impl<'a> Picture<'a> {
    pub(super) fn of(results: &'a Results) -> Option<Self> {
        let machine = results.machine.line();
        (!results.latencies.is_empty()).then_some(Self { latencies: &results.latencies, machine })
    }
}

impl Drawing for Picture<'_> {
    fn height(&self) -> u32 {
        820
    }

    fn draw<DB: DrawingBackend>(&self, area: &Area<DB>) -> Outcome<DB> {
        let title = "How long one operation takes: warm, client and server on one processor, \
                     without the slowest 1 %";
        caption(area, title, (24, 14), 24)?;
        let names = self.latencies.first().map(|one| &one.contenders);
        let names: Vec<&str> = names.into_iter().flatten().map(|of| of.name.as_str()).collect();
        legend(area, &names, (24, 56))?;
        caption(area, &self.machine, (24, 794), 16)?;
        let cells = area.margin(84, 32, 10, 10).split_evenly((2, 2));
        for (cell, latency) in cells.iter().zip(self.latencies) {
            one(cell, latency)?;
        }
        Ok(())
    }
}

fn one<DB: DrawingBackend>(area: &Area<DB>, latency: &Latency) -> Outcome<DB> {
    // The slowest of a hundred would stretch the axis over what nobody can read then.
    let shown = |part: f64| part <= 99.0;
    let all = latency.contenders.iter().flat_map(|of| &of.nanoseconds);
    let span = span(all.filter(|(part, _)| shown(*part)).map(|(_, nanos)| nanos / 1e3));
    let at = ticks(&span);
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .margin_right(20)
        .caption(&latency.what, letters(21))
        .x_label_area_size(48)
        .y_label_area_size(70)
        .build_cartesian_2d(span.log_scale().with_key_points(at), 0.0..100.0)?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(WHITE)
        .axis_style(AXIS)
        .label_style(letters(18))
        .axis_desc_style(letters(19))
        .x_desc("takes at most, µs")
        .y_desc("operations, %")
        .x_label_formatter(&|value| short(*value))
        .y_label_formatter(&|value| short(*value))
        .y_labels(6)
        .draw()?;
    for of in &latency.contenders {
        let points = of.nanoseconds.iter().filter(|(part, _)| shown(*part));
        let points = points.map(|(part, nanos)| (nanos / 1e3, *part));
        chart.draw_series(LineSeries::new(points, colour(&of.name).stroke_width(3)))?;
    }
    Ok(())
}
