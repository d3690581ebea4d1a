//! The name a person probably meant.

/// The nearest of `names` to `wanted`, if one is near at all.
///
/// Near: no more than a third of the letters, and at least one, have to be put in, left
/// out, exchanged or swapped with a neighbour; or `wanted` is the beginning of the name.
#[must_use]
pub fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (wanted.chars().count() / 3).max(1);
    names
        .into_iter()
        .filter_map(|name| {
            let begins = !wanted.is_empty() && name.starts_with(wanted);
            let distance = if begins { 1 } else { strsim::damerau_levenshtein(wanted, name) };
            (distance <= limit).then_some((distance, name))
        })
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_finger_are_near_and_other_words_are_not() {
        let names = ["debian:12", "debian:11", "alpine:3", "web1"];
        assert_eq!(nearest("debain:12", names), Some("debian:12"));
        assert_eq!(nearest("debian", names), Some("debian:11"));
        assert_eq!(nearest("wbe1", names), Some("web1"));
        assert_eq!(nearest("postgres", names), None);
        assert_eq!(nearest("", names), None);
    }
}
