//! Drawing once, for both kinds of picture; colours, letters, and the dashes of what is computed.

use std::sync::Once;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;

use crate::bench::error::{BenchError, Result};

/// Letters of our own, so that a bare machine can draw: DejaVu Sans, the characters that are
/// used (its licence lies beside it).
static LETTERS: &[u8] = include_bytes!("dejavu-sans.ttf");
/// The name under which both kinds of picture know them; a browser takes its own.
pub(super) const FAMILY: &str = "sans-serif";

/// Width of every picture, in pixels.
pub(super) const WIDTH: u32 = 1200;

/// Something that can be drawn.
pub(super) trait Drawing {
    /// How high it is, in pixels.
    fn height(&self) -> u32;

    /// Draws it.
    fn draw<DB: DrawingBackend>(&self, area: &Area<DB>) -> Outcome<DB>;
}

pub(super) type Area<DB> = DrawingArea<DB, Shift>;
pub(super) type Outcome<DB> =
    std::result::Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

/// A picture in both kinds.
pub(super) struct Drawn {
    pub(super) name: &'static str,
    pub(super) svg: String,
    pub(super) png: Vec<u8>,
}

/// Draws a picture in both kinds.
pub(super) fn drawn(name: &'static str, drawing: &impl Drawing) -> Result<Drawn> {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        for style in [FontStyle::Normal, FontStyle::Bold] {
            // It fails only for bytes that are no font; ours are, and a test draws with them.
            let _registered = register_font(FAMILY, style, LETTERS);
        }
    });
    let failed = |reason: String| BenchError::Picture { name, reason };
    let size = (WIDTH, drawing.height());
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        on_white(drawing, &area).map_err(|error| failed(error.to_string()))?;
    }
    let pixels = usize::try_from(size.0 * size.1).unwrap_or(0);
    let mut buffer = vec![0; pixels * 3];
    {
        let area = BitMapBackend::with_buffer(&mut buffer, size).into_drawing_area();
        on_white(drawing, &area).map_err(|error| failed(error.to_string()))?;
    }
    let png = encode(&buffer, size).map_err(|error| failed(error.to_string()))?;
    Ok(Drawn { name, svg, png })
}

fn on_white<DB: DrawingBackend>(drawing: &impl Drawing, area: &Area<DB>) -> Outcome<DB> {
    area.fill(&WHITE)?;
    drawing.draw(area)?;
    area.present()
}

fn encode(buffer: &[u8], (width, height): (u32, u32)) -> Result<Vec<u8>, png::EncodingError> {
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    encoder.write_header()?.write_image_data(buffer)?;
    Ok(png)
}

/// The colour of a contender, the same in all pictures.
pub(super) fn colour(name: &str) -> RGBColor {
    match name.split(',').next().unwrap_or_default() {
        "mica" => RGBColor(208, 32, 58),
        "overlayfs" => RGBColor(38, 104, 180),
        "fuse-overlayfs" => RGBColor(130, 70, 160),
        "reflink copies" => RGBColor(200, 120, 30),
        "ideal" => RGBColor(30, 140, 70),
        _ => RGBColor(110, 110, 110),
    }
}

/// Letters of this size.
pub(super) fn letters(size: i32) -> TextStyle<'static> {
    TextStyle::from((FAMILY, size).into_font()).color(&RGBColor(40, 40, 40))
}

/// What the axes look like.
pub(super) const GRID: RGBColor = RGBColor(225, 225, 225);
/// See [`GRID`].
pub(super) const AXIS: RGBColor = RGBColor(120, 120, 120);

/// A legend entry or label.
pub(super) fn caption<DB: DrawingBackend>(
    area: &Area<DB>,
    text: &str,
    at: (i32, i32),
    size: i32,
) -> Outcome<DB> {
    area.draw(&Text::new(text.to_owned(), at, letters(size)))
}

/// Names beside their colours, in a row from `at` on.
pub(super) fn legend<DB: DrawingBackend>(
    area: &Area<DB>,
    names: &[&str],
    at: (i32, i32),
) -> Outcome<DB> {
    let mut x = at.0;
    for name in names {
        let y = at.1;
        area.draw(&Rectangle::new([(x, y), (x + 26, y + 12)], colour(name).filled()))?;
        caption(area, name, (x + 34, y - 4), 19)?;
        let letters = i32::try_from(name.chars().count()).unwrap_or(20);
        x += 34 + letters * 10 + 34;
    }
    Ok(())
}

/// 1,000 as people write it on an axis.
pub(super) fn short(value: f64) -> String {
    let (number, unit) = match value.abs() {
        size if size >= 0.999e6 => (value / 1e6, "M"),
        size if size >= 0.999e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = if number.abs() >= 10.0 || number.fract().abs() < 0.05 {
        format!("{number:.0}")
    } else if number.abs() >= 1.0 {
        format!("{number:.1}")
    } else {
        format!("{number:.2}")
    };
    format!("{text}{unit}")
}

/// The smallest and the largest of numbers that can be drawn along logarithms, with some room.
pub(super) fn span(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (mut low, mut high) = (f64::MAX, f64::MIN);
    for value in values.filter(|value| value.is_finite() && *value > 0.0) {
        low = low.min(value);
        high = high.max(value);
    }
    if low > high { 1.0..10.0 } else { low / 1.4..high * 1.6 }
}

/// Where an axis along logarithms is labelled: at every power of ten, and in between where
/// there are few of them.
pub(super) fn ticks(span: &std::ops::Range<f64>) -> Vec<f64> {
    let decades = (span.end / span.start).log10();
    let between: &[f64] = match decades {
        many if many > 3.0 => &[1.0],
        some if some > 1.5 => &[1.0, 3.0],
        one if one > 0.7 => &[1.0, 2.0, 5.0],
        _part => &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
    };
    let powers = (-12..=12).map(|power| 10_f64.powi(power));
    let all = powers.flat_map(|power| between.iter().map(move |part| part * power));
    all.filter(|tick| span.contains(tick)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_and_wide_axes_have_some_labels() {
        for (span, least) in [(1.1..4.0, 3), (0.5..30.0, 3), (1.0..1e6, 5)] {
            let ticks = ticks(&span);
            assert!((least..9).contains(&ticks.len()), "{ticks:?}");
        }
    }

    struct Letters;

    impl Drawing for Letters {
        fn height(&self) -> u32 {
            60
        }

        fn draw<DB: DrawingBackend>(&self, area: &Area<DB>) -> Outcome<DB> {
            caption(area, "MiB ≤ 10 × µs – 5 %", (10, 10), 30)
        }
    }

    #[test]
    fn letters_are_drawn_without_any_font_of_the_host() {
        let drawn = drawn("letters", &Letters).expect("drawn");
        assert!(drawn.svg.contains("MiB"), "{}", drawn.svg);
        let decoder = png::Decoder::new(std::io::Cursor::new(drawn.png));
        let mut reader = decoder.read_info().expect("a picture");
        let mut pixels = vec![0; reader.output_buffer_size().expect("it fits")];
        reader.next_frame(&mut pixels).expect("read");
        let dark = pixels.chunks(3).filter(|pixel| pixel[0] < 100).count();
        assert!(dark > 500, "only {dark} dark pixels: nothing is written there");
    }

    #[test]
    fn numbers_on_axes_are_short() {
        for (value, text) in [(1e6, "1M"), (10_000.0, "10k"), (1500.0, "1.5k"), (0.25, "0.25")] {
            assert_eq!(short(value), text);
        }
    }
}
