//! Values that are neither sizes nor times: words, names, ranges, signals, and the texts of each.

use super::units::{error, parse_number};
use super::{
    IdRange, NetworkMode, Priority, ResharePolicy, RestartPolicy, RuntimeChoice, UserNamespace,
    ValueError, Volume, parse_bytes,
};

/// Words between commas, none of them twice.
pub(super) fn items<T: PartialEq>(
    text: &str,
    parse: impl Fn(&str) -> Result<T, ValueError>,
) -> Result<Vec<T>, ValueError> {
    let mut items = Vec::new();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let item = parse(word)?;
        if !items.contains(&item) {
            items.push(item);
        }
    }
    Ok(items)
}

pub(super) fn text_value(text: &str) -> Result<String, ValueError> {
    if text.contains('\0') { Err(error(text, "a text")) } else { Ok(text.to_owned()) }
}

pub(super) fn positive(text: &str, wanted: &'static str) -> Result<u64, ValueError> {
    parse_number(text, wanted).and_then(|n| if n == 0 { Err(error(text, wanted)) } else { Ok(n) })
}

pub(super) fn size(text: &str) -> Result<u64, ValueError> {
    parse_bytes(text)
        .and_then(|n| if n == 0 { Err(error(text, "more than nothing")) } else { Ok(n) })
}

pub(super) fn parse_share(text: &str) -> Result<f64, ValueError> {
    let wanted = "processors' worth of time, such as 0.5";
    match parse_number::<f64>(text, wanted) {
        Ok(share) if share.is_finite() && share > 0.0 && share <= 8192.0 => Ok(share),
        Ok(_) | Err(_) => Err(error(text, wanted)),
    }
}

pub(super) fn percent(share: &u8) -> String {
    format!("{share}%")
}

// The signature is the table's.
#[allow(clippy::trivially_copy_pass_by_ref)]
pub(super) fn flag(flag: &bool) -> String {
    if *flag { "yes".to_owned() } else { String::new() }
}

/// The numbers of other tools are none: `dialect` knows those that have a middle.
pub(super) fn parse_priority(text: &str) -> Result<Priority, ValueError> {
    match text.trim().to_ascii_lowercase().as_str() {
        "low" => Ok(Priority::Low),
        "normal" | "medium" => Ok(Priority::Normal),
        "high" => Ok(Priority::High),
        _ => Err(error(text, "low, normal or high")),
    }
}

pub(super) fn parse_network(text: &str) -> Result<NetworkMode, ValueError> {
    match text {
        "bridge" => Ok(NetworkMode::Bridge),
        "none" => Ok(NetworkMode::None),
        "host" => Ok(NetworkMode::Host),
        _ => Err(error(text, "bridge, none or host")),
    }
}

/// RFC 1123: labels of letters, digits and hyphens, between dots.
pub(super) fn parse_hostname(text: &str) -> Result<String, ValueError> {
    let letter = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(letter)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // The kernel's host name has 64 bytes.
    if text.len() <= 64 && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err(error(text, "a host name of at most 64 letters, digits, hyphens and dots"))
    }
}

pub(super) fn parse_restart(text: &str) -> Result<RestartPolicy, ValueError> {
    let wanted = "no, on-failure, on-failure:5 or always";
    match text.split_once(':').unwrap_or((text, "0")) {
        ("no" | "never", _) => Ok(RestartPolicy::No),
        ("always" | "unless-stopped", _) => Ok(RestartPolicy::Always),
        ("on-failure", max) => Ok(RestartPolicy::OnFailure { max: parse_number(max, wanted)? }),
        _ => Err(error(text, wanted)),
    }
}

pub(super) fn restart(policy: &RestartPolicy) -> String {
    match policy {
        RestartPolicy::No => String::new(),
        RestartPolicy::OnFailure { max: 0 } => "on-failure".to_owned(),
        RestartPolicy::OnFailure { max } => format!("on-failure:{max}"),
        RestartPolicy::Always => "always".to_owned(),
    }
}

pub(super) fn parse_reshare(text: &str) -> Result<ResharePolicy, ValueError> {
    match text {
        "off" | "never" => Ok(ResharePolicy::Off),
        "templates" => Ok(ResharePolicy::Templates),
        "all" => Ok(ResharePolicy::All),
        _ => Err(error(text, "off, templates or all")),
    }
}

pub(super) fn reshare(policy: &ResharePolicy) -> String {
    match policy {
        ResharePolicy::All => String::new(),
        ResharePolicy::Templates => "templates".to_owned(),
        ResharePolicy::Off => "off".to_owned(),
    }
}

/// Linux's numbers; the first of the real-time signals that programs may use is 34.
const SIGNALS: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ABRT", 6),
    ("KILL", 9),
    ("USR1", 10),
    ("USR2", 12),
    ("TERM", 15),
    ("CONT", 18),
    ("STOP", 19),
    ("WINCH", 28),
    ("PWR", 30),
    ("RTMIN", 34),
    ("RTMAX", 64),
];

/// A signal's number: `15`, `TERM`, `SIGTERM`, `SIGRTMIN+3`.
///
/// # Errors
/// [`ValueError`].
pub fn parse_signal(text: &str) -> Result<i32, ValueError> {
    let wanted = "a signal, such as TERM, SIGRTMIN+3 or 15";
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = |name: &str| SIGNALS.iter().find(|signal| signal.0 == name).map(|signal| signal.1);
    let number = match name.split_once('+') {
        Some((base, more)) => {
            named(base).zip(more.parse::<i32>().ok()).map(|(a, b)| a.saturating_add(b))
        }
        None => named(name).or_else(|| name.parse().ok()),
    };
    number.filter(|number| (1..=64).contains(number)).ok_or_else(|| error(text, wanted))
}

pub(super) fn signal_text(number: i32) -> String {
    if (35..64).contains(&number) {
        return format!("SIGRTMIN+{}", number - 34);
    }
    match SIGNALS.iter().find(|signal| signal.1 == number) {
        Some((name, _)) => format!("SIG{name}"),
        None => number.to_string(),
    }
}

pub(super) fn parse_absolute(text: &str) -> Result<std::path::PathBuf, ValueError> {
    let path = std::path::PathBuf::from(text);
    let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    if path.is_absolute() && plain && !text.contains(['\0', '\n']) {
        Ok(path)
    } else {
        Err(error(text, "an absolute path without \"..\""))
    }
}

pub(super) fn path(path: &std::path::Path) -> String {
    path.display().to_string()
}

pub(super) fn parse_volume(text: &str) -> Result<Volume, ValueError> {
    let wanted = "SOURCE:TARGET or SOURCE:TARGET:ro, both absolute";
    let mut parts = text.split(':');
    let (source, target) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let read_only = match parts.next() {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(_) => return Err(error(text, wanted)),
    };
    let absolute = |part| parse_absolute(part).map_err(|_| error(text, wanted));
    if parts.next().is_some() {
        return Err(error(text, wanted));
    }
    Ok(Volume { source: absolute(source)?, target: absolute(target)?, read_only })
}

pub(super) fn volume(volume: &Volume) -> String {
    let end = if volume.read_only { ":ro" } else { "" };
    format!("{}:{}{end}", volume.source.display(), volume.target.display())
}

pub(super) fn parse_runtime(text: &str) -> Result<RuntimeChoice, ValueError> {
    match text {
        "embedded" => Ok(RuntimeChoice::Embedded),
        _ if text.contains(['\0', ' ']) => Err(error(text, "embedded, a program or a path")),
        program => Ok(RuntimeChoice::External(program.into())),
    }
}

pub(super) fn runtime(choice: &RuntimeChoice) -> String {
    match choice {
        RuntimeChoice::Embedded => "embedded".to_owned(),
        RuntimeChoice::External(program) => path(program),
    }
}

pub(super) fn parse_userns(text: &str) -> Result<UserNamespace, ValueError> {
    let wanted = "auto, FIRST:COUNT (numbers of host users) or host";
    match text {
        "auto" => Ok(UserNamespace::Auto),
        "host" => Ok(UserNamespace::Host),
        _ => {
            let (first, count) = text.split_once(':').unwrap_or((text, "65536"));
            let range = IdRange::new(parse_number(first, wanted)?, parse_number(count, wanted)?);
            range.map(UserNamespace::Range).ok_or_else(|| error(text, wanted))
        }
    }
}

pub(super) fn userns(userns: &UserNamespace) -> String {
    match userns {
        UserNamespace::Auto => String::new(),
        UserNamespace::Range(range) => format!("{}:{}", range.first(), range.count()),
        UserNamespace::Host => "host".to_owned(),
    }
}

pub(super) fn parse_capability(text: &str) -> Result<String, ValueError> {
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if crate::container::capabilities::is_capability(name) {
        Ok(name.to_owned())
    } else {
        Err(error(text, "a capability, such as NET_RAW (see capabilities(7))"))
    }
}

/// Words as a shell would take them: blanks part, quotes and backslashes keep together.
///
/// # Errors
/// [`ValueError`] for a quote that does not end.
pub fn words(text: &str) -> Result<Vec<String>, ValueError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            (letter, Some(open)) if letter == open => quote = None,
            ('\'' | '"', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            ('\\', None | Some('"')) => match letters.next() {
                Some(next) => word.get_or_insert_default().push(next),
                None => return Err(error(text, "a command; it ends in a backslash")),
            },
            (letter, None) if letter.is_whitespace() => words.extend(word.take()),
            (letter, _) => word.get_or_insert_default().push(letter),
        }
    }
    if quote.is_some() || text.contains('\0') {
        return Err(error(text, "a command; a quote in it does not end"));
    }
    words.extend(word);
    Ok(words)
}

/// The text that [`words`] takes apart again.
#[must_use]
pub fn unwords(words: &[String]) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:=+,@%".contains(letter);
    let quoted = |word: &String| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}
