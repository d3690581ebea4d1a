//! Disk space against the number of roots, and what is saved in each situation.

use plotters::prelude::*;

use super::canvas::{
    AXIS, Area, Drawing, GRID, Outcome, WIDTH, caption, colour, legend, letters, short, span, ticks,
};
use crate::bench::results::{DiskPoint, FULL_COPIES, Results, SavingsCase, mebibytes};

/// Bytes in GiB.
fn gibibytes(bytes: u64) -> f64 {
    mebibytes(bytes) / 1024.0
}

/// The picture of the savings part.
pub(super) struct Picture<'a> {
    cases: &'a [SavingsCase],
    machine: String,
}

impl<'a> Picture<'a> {
    pub(super) fn of(results: &'a Results) -> Option<Self> {
        let machine = results.machine.line();
        (!results.savings.is_empty()).then_some(Self { cases: &results.savings, machine })
    }
}

/// The number of roots that the bars are about.
const BARS_AT: u32 = 20;

impl Drawing for Picture<'_> {
    fn height(&self) -> u32 {
        // Room for the bars of each case, with a number behind each.
        let cases = u32::try_from(self.cases.len()).unwrap_or(4);
        (180 + 135 * cases).max(680)
    }

    fn draw<DB: DrawingBackend>(&self, area: &Area<DB>) -> Outcome<DB> {
        let Some(case) = self.cases.first() else { return Ok(()) };
        caption(area, &format!("Disk space of N roots ({})", case.note), (24, 14), 24)?;
        let mut names = case.contenders();
        names.push("ideal");
        legend(area, &names, (24, 56))?;
        caption(
            area,
            &format!("Hollow and dashed: computed, so many do not fit.  {}", self.machine),
            (24, i32::try_from(self.height()).unwrap_or(680) - 28),
            16,
        )?;
        let body = area.margin(80, 36, 10, 10);
        let (left, right) = body.split_horizontally(WIDTH * 60 / 100);
        against_number(&left, case)?;
        saved(&right, self.cases)
    }
}

fn against_number<DB: DrawingBackend>(area: &Area<DB>, case: &SavingsCase) -> Outcome<DB> {
    let of = |point: &DiskPoint| (f64::from(point.roots), gibibytes(point.bytes));
    let values = case.points.iter().map(|point| of(point).1);
    let ideal = case.ideal.iter().map(|(_, bytes)| gibibytes(*bytes));
    let span = span(values.chain(ideal));
    let at = ticks(&span);
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_right(24)
        .x_label_area_size(56)
        .y_label_area_size(90)
        .build_cartesian_2d((0.8..1300.0).log_scale(), span.log_scale().with_key_points(at))?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(WHITE)
        .axis_style(AXIS)
        .label_style(letters(19))
        .axis_desc_style(letters(21))
        .x_desc("roots of one template")
        .y_desc("GiB on the disk, all roots together")
        .x_label_formatter(&|value| short(*value))
        .y_label_formatter(&|value| short(*value))
        .draw()?;
    for name in case.contenders() {
        let mut points: Vec<&DiskPoint> =
            case.points.iter().filter(|point| point.contender == name).collect();
        points.sort_by_key(|point| point.roots);
        let style = colour(name).stroke_width(3);
        for pair in points.windows(2) {
            let line = [of(pair[0]), of(pair[1])];
            if pair.iter().all(|point| point.measured) {
                chart.draw_series(LineSeries::new(line, style))?;
            } else {
                chart.draw_series(DashedLineSeries::new(line, 9, 7, style))?;
            }
        }
        for point in points {
            let fill = if point.measured { colour(name).filled() } else { WHITE.filled() };
            chart.draw_series([Circle::new(of(point), 6, fill)])?;
            chart.draw_series([Circle::new(of(point), 6, colour(name).stroke_width(2))])?;
        }
    }
    let ideal = case.ideal.iter().map(|(roots, bytes)| (f64::from(*roots), gibibytes(*bytes)));
    chart.draw_series(DashedLineSeries::new(ideal, 3, 5, colour("ideal").stroke_width(3)))?;
    Ok(())
}

/// What each contender saves in each situation.
fn saved<DB: DrawingBackend>(area: &Area<DB>, cases: &[SavingsCase]) -> Outcome<DB> {
    let (width, height) = area.dim_in_pixel();
    let (width, height) =
        (i32::try_from(width).unwrap_or(480), i32::try_from(height).unwrap_or(560));
    caption(area, &format!("Saved over full copies, {BARS_AT} roots"), (20, 8), 21)?;
    let count = i32::try_from(cases.len().max(1)).unwrap_or(1);
    let each = (height - 60) / count;
    for (number, case) in (0..).zip(cases) {
        let top = 44 + number * each;
        caption(area, &case.name, (20, top), 19)?;
        let bars = case
            .contenders()
            .into_iter()
            .filter(|name| *name != FULL_COPIES)
            .map(|name| (name.to_owned(), case.saved(name, BARS_AT)))
            .chain([("ideal".to_owned(), case.ideal_saved(BARS_AT))])
            .filter_map(|(name, saved)| Some((name, saved?)));
        let bars: Vec<(String, f64)> = bars.collect();
        let thick = ((each - 34) / i32::try_from(bars.len().max(1)).unwrap_or(1)).clamp(8, 24);
        for (at, (name, saved)) in (0..).zip(bars) {
            let y = top + 26 + at * thick;
            let full = f64::from(width - 170);
            #[expect(clippy::cast_possible_truncation, reason = "at most the width of a picture")]
            let length = (full * saved.clamp(0.0, 1.0)) as i32;
            let bar = [(20, y), (20 + length, y + thick - 4)];
            area.draw(&Rectangle::new(bar, colour(&name).filled()))?;
            // Of two bars of one colour the second one says what else it is.
            let what = name.split_once(',').map_or("", |(_, what)| what);
            let text = format!("{:.1} %{what}", saved * 100.0);
            caption(area, &text, (28 + length, y + thick / 2 - 11), 17)?;
        }
    }
    Ok(())
}
