//! Sizes, rates, shares and times, as people write them.

use std::str::FromStr;

/// Why a value is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {wanted}")]
pub struct ValueError {
    /// What was given.
    pub value: String,
    /// What would have been understood.
    pub wanted: &'static str,
}

pub(super) fn error(value: &str, wanted: &'static str) -> ValueError {
    ValueError { value: value.to_owned(), wanted }
}

/// Splits a number, perhaps with a fraction, from what follows it.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    (number, unit.trim())
}

/// `number` times `factor`, exactly if it has no fraction.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || (fraction.is_empty() && number.contains('.')) || fraction.contains('.') {
        return None;
    }
    let whole = u64::from_str(whole).ok()?.checked_mul(factor)?;
    // Six digits are more than anybody measures.
    let digits: String = fraction.chars().take(6).collect();
    if digits.is_empty() {
        return Some(whole);
    }
    let scale = 10_u64.pow(u32::try_from(digits.len()).ok()?);
    let part = u128::from(u64::from_str(&digits).ok()?) * u128::from(factor) / u128::from(scale);
    whole.checked_add(u64::try_from(part).ok()?)
}

const BYTES: &str = "a size, such as 512MiB, 1.5G or 20MB (KiB, MiB, GiB, TiB and K, M, G, T count by 1024; KB, MB, GB, TB by 1000)";

/// Bytes: `512MiB`, `512M`, `1.5G`, `20MB`, `1048576`.
///
/// # Errors
/// [`ValueError`], also for more than 64 bits hold.
pub fn parse_bytes(text: &str) -> Result<u64, ValueError> {
    let (number, unit) = split(text.trim());
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(error(text, BYTES)),
    };
    scaled(number, factor).ok_or_else(|| error(text, BYTES))
}

/// Bytes as [`parse_bytes`] reads them, in the largest unit that needs no fraction.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    for (factor, unit) in
        [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
    {
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    for (factor, unit) in [(1_000_000_000_u64, "GB"), (1_000_000, "MB")] {
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    bytes.to_string()
}

/// Bytes in a second: a size, perhaps with `/s`.
pub(super) fn parse_byte_rate(text: &str) -> Result<u64, ValueError> {
    let wanted = "a rate, such as 20MB/s or 20MiB/s";
    let text_ = text.trim();
    let text_ = text_.strip_suffix("/s").or_else(|| text_.strip_suffix("ps")).unwrap_or(text_);
    parse_bytes(text_).map_err(|_| error(text, wanted))
}

pub(super) fn byte_rate(rate: u64) -> String {
    format!("{}/s", bytes(rate))
}

/// Bits in a second: `50Mbit`, `50Mbit/s`, `50Mbps`, `1Gbit`; a bare number is bits.
pub(super) fn parse_bit_rate(text: &str) -> Result<u64, ValueError> {
    let wanted = "a rate, such as 50Mbit, 1Gbit or 500kbit";
    let (number, unit) = split(text.trim());
    let unit = unit.to_ascii_lowercase();
    let unit = unit.strip_suffix("/s").unwrap_or(&unit);
    let factor = match unit {
        "" | "bit" | "bps" => 1,
        "kbit" | "kbps" => 1_000,
        "mbit" | "mbps" => 1_000_000,
        "gbit" | "gbps" => 1_000_000_000,
        _ => return Err(error(text, wanted)),
    };
    scaled(number, factor).ok_or_else(|| error(text, wanted))
}

pub(super) fn bit_rate(rate: u64) -> String {
    for (factor, unit) in [(1_000_000_000_u64, "Gbit"), (1_000_000, "Mbit"), (1_000, "kbit")] {
        if rate >= factor && rate.is_multiple_of(factor) {
            return format!("{}{unit}", rate / factor);
        }
    }
    format!("{rate}bit")
}

/// Seconds: `30`, `30s`, `5m`, `1h30m`.
///
/// # Errors
/// [`ValueError`].
pub fn parse_duration(text: &str) -> Result<u64, ValueError> {
    let wanted = "a time, such as 30s, 5m or 1h30m";
    let mut rest = text.trim();
    let mut total = 0_u64;
    while !rest.is_empty() {
        let (number, tail) = split(rest);
        let number = u64::from_str(number).map_err(|_| error(text, wanted))?;
        let mut letters = tail.chars();
        let factor = match letters.next() {
            None | Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86400,
            Some(_) => return Err(error(text, wanted)),
        };
        let part = number.checked_mul(factor).ok_or_else(|| error(text, wanted))?;
        total = total.checked_add(part).ok_or_else(|| error(text, wanted))?;
        rest = letters.as_str();
    }
    if text.trim().is_empty() { Err(error(text, wanted)) } else { Ok(total) }
}

/// Seconds as [`parse_duration`] reads them.
#[must_use]
pub fn duration_text(seconds: u64) -> String {
    match seconds {
        0 => "0s".to_owned(),
        s if s.is_multiple_of(3600) => format!("{}h", s / 3600),
        s if s.is_multiple_of(60) => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

/// A percentage from 1 to 100, with or without the sign.
pub(super) fn parse_percent(text: &str) -> Result<u8, ValueError> {
    let number = text.trim().trim_end_matches('%').trim();
    match u8::from_str(number) {
        Ok(percent @ 1..=100) => Ok(percent),
        Ok(_) | Err(_) => Err(error(text, "a share from 1% to 100%")),
    }
}

/// `true`, `yes`, `on`, `1` and their opposites.
pub(super) fn parse_flag(text: &str) -> Result<bool, ValueError> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err(error(text, "yes or no")),
    }
}

pub(super) fn parse_number<T: FromStr>(text: &str, wanted: &'static str) -> Result<T, ValueError> {
    text.trim().parse().map_err(|_| error(text, wanted))
}
