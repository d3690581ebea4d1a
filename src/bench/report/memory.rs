//! Memory of one container, by workload and contender.

use plotters::prelude::*;

use super::canvas::{AXIS, Area, Drawing, GRID, Outcome, caption, colour, legend, letters, short};
use crate::bench::results::{MemoryCase, MemoryOf, Results, mebibytes};

/// The picture of the memory part.
pub(super) struct Picture<'a> {
    cases: &'a [MemoryCase],
    machine: String,
}

impl<'a> Picture<'a> {
    pub(super) fn of(results: &'a Results) -> Option<Self> {
        let machine = results.machine.line();
        let some = results.memory.iter().any(|case| !case.contenders.is_empty());
        some.then_some(Self { cases: &results.memory, machine })
    }
}

fn each(of: &MemoryOf, bytes: u64) -> f64 {
    mebibytes(bytes) / f64::from(of.containers.max(1))
}

impl Drawing for Picture<'_> {
    fn height(&self) -> u32 {
        640
    }

    fn draw<DB: DrawingBackend>(&self, area: &Area<DB>) -> Outcome<DB> {
        let all = || self.cases.iter().flat_map(|case| &case.contenders);
        let most = all().map(|of| of.containers).max().unwrap_or_default();
        let title = format!("Memory of one container, of {most} that run the same");
        caption(area, &title, (24, 14), 24)?;
        let mut names: Vec<&str> = Vec::new();
        for of in all() {
            if !names.contains(&of.contender.as_str()) {
                names.push(&of.contender);
            }
        }
        legend(area, &names, (24, 56))?;
        let note = "Dark: the containers' memory cgroups; pale on top: the processes and kernel memory that serve their roots.";
        caption(area, note, (24, 588), 16)?;
        caption(area, &self.machine, (24, 612), 16)?;

        let highest = all().map(|of| mebibytes(of.each_bytes())).fold(0.0, f64::max);
        let groups = self.cases.len() as f64;
        let mut chart = ChartBuilder::on(&area.margin(84, 60, 10, 10))
            .margin(10)
            .x_label_area_size(44)
            .y_label_area_size(80)
            .build_cartesian_2d(0.0..groups, 0.0..highest.max(0.1) * 1.15)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .bold_line_style(GRID)
            .light_line_style(WHITE)
            .axis_style(AXIS)
            .label_style(letters(19))
            .axis_desc_style(letters(21))
            .y_desc("MiB for each container")
            .y_label_formatter(&|value| short(*value))
            .draw()?;
        for (group, case) in (0..).map(f64::from).zip(self.cases) {
            let count = case.contenders.len() as f64;
            let wide = 0.8 / count.max(1.0);
            for (at, of) in (0..).map(f64::from).zip(&case.contenders) {
                let left = group + 0.1 + at * wide;
                let right = left + wide * 0.86;
                let cells = each(of, of.cgroups_bytes);
                let top = mebibytes(of.each_bytes());
                let paint = colour(&of.contender);
                chart.draw_series([
                    Rectangle::new([(left, 0.0), (right, cells)], paint.filled()),
                    Rectangle::new([(left, cells), (right, top)], paint.mix(0.45).filled()),
                ])?;
                let text = format!("{top:.1}");
                let place = (left, top + highest * 0.045);
                chart.draw_series([Text::new(text, place, letters(19))])?;
            }
        }
        // The names of the groups, under the axis.
        let plot = chart.plotting_area().get_pixel_range();
        let wide = f64::from(plot.0.end - plot.0.start) / groups.max(1.0);
        for (group, case) in (0..).map(f64::from).zip(self.cases) {
            let letters = case.workload.chars().count() as f64 * 10.5;
            #[expect(clippy::cast_possible_truncation, reason = "within a picture")]
            let x = plot.0.start + (wide * (group + 0.5) - letters / 2.0) as i32;
            caption(area, &case.workload, (x, plot.1.end + 14), 21)?;
        }
        Ok(())
    }
}
