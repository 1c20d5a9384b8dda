//! Words for people: the nearest valid one, lists, byte counts, runs of layers.

/// The valid word nearest to `given`, if one is near enough to be meant.
pub fn nearest<'a>(given: &str, valid: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // What other systems call the same thing, where spelling alone would mislead.
    const SYNONYMS: &[(&str, &str)] = &[
        ("gpu", "cuda"),
        ("nvidia", "cuda"),
        ("fp32", "f32"),
        ("float32", "f32"),
        ("bfloat16", "bf16"),
        ("e4m3", "fp8_e4m3"),
        ("attention", "mfa_attention"),
        ("attn", "mfa_attention"),
        ("moe_ffn", "expert_ffn"),
        ("mlp", "dense_ffn"),
    ];
    // Names are short: past this length nothing resembles them, and comparing costs time.
    if given.len() > 128 {
        return None;
    }
    let lower = given.to_lowercase();
    let score = |word: &str| {
        let typed = strsim::damerau_levenshtein(&lower, &word.to_lowercase());
        let close = typed <= (word.chars().count().max(given.chars().count()) / 3).max(1);
        let part = lower.len() >= 3 && (word.contains(&lower) || lower.contains(word) && word.len() >= 3);
        (close || part).then_some(typed)
    };
    let meant = SYNONYMS.iter().find(|(other, _)| *other == lower).map(|(_, word)| *word);
    let scored =
        |word: &'a str| if meant == Some(word) { Some((0, word)) } else { score(word).map(|typed| (typed, word)) };
    valid.into_iter().filter_map(scored).min().map(|(_, word)| word)
}

/// Help that names the nearest word, else all of them.
pub fn suggest<'a>(given: &str, valid: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(given, valid.clone()) {
        Some(word) => format!("did you mean `{word}`?"),
        None => {
            let words: Vec<&str> = valid.into_iter().collect();
            match words.len() {
                0 => "there is none to choose from".to_owned(),
                _ => format!("valid here: {}", list(&words)),
            }
        }
    }
}

/// `a`, `b`, `c`: at most twelve.
pub fn list<S: AsRef<str>>(words: &[S]) -> String {
    const MOST: usize = 12;
    let mut text = words.iter().take(MOST).map(|word| format!("`{}`", word.as_ref())).collect::<Vec<_>>().join(", ");
    if words.len() > MOST {
        text.push_str(&format!(" and {} more", words.len() - MOST));
    }
    text
}

/// A text from a file with its control characters replaced, byte for byte as long, so that it cannot steer a terminal.
pub fn printable(text: &str) -> String {
    let replace = |c: char| match c {
        '\n' | '\t' | '\r' => c,
        c if c.is_control() && c.len_utf8() == 1 => '?',
        c if c.is_control() => '¿',
        c => c,
    };
    text.chars().map(replace).collect()
}

/// Cuts a text that a file holds to a length fit for a message.
pub fn short(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// Bytes with a decimal unit, three digits.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// Microseconds or milliseconds, three digits.
pub fn microseconds(value: f64) -> String {
    match value {
        v if v >= 1000.0 => format!("{:.2} ms", v / 1000.0),
        v if v >= 100.0 => format!("{v:.0} µs"),
        v => format!("{v:.1} µs"),
    }
}

/// Numbers in ascending order as inclusive runs: `0..3, 60`.
pub fn runs(numbers: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for number in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => parts.push((*number, *number)),
        }
    }
    let text = |(first, last): &(usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}..{last}"),
    };
    parts.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// A count and its noun, in the plural unless there is one.
pub fn plural(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ if noun.ends_with("ch") => format!("{count} {noun}es"),
        _ => format!("{count} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_typing_errors_and_nothing_far() {
        assert_eq!(nearest("expert_fnn", ["expert_ffn", "dense_ffn"]), Some("expert_ffn"));
        assert_eq!(nearest("attention", ["mfa_attention", "router"]), Some("mfa_attention"));
        assert_eq!(nearest("zebra", ["expert_ffn", "dense_ffn"]), None);
    }

    #[test]
    fn bytes_keep_three_digits() {
        let shown: Vec<String> = [999, 1000, 12_345, 999_999, 57_812_345_678].iter().map(|n| bytes(*n)).collect();
        assert_eq!(shown, ["999 B", "1.00 kB", "12.3 kB", "1.00 MB", "57.8 GB"]);
    }

    #[test]
    fn printable_keeps_every_offset() {
        let text = "a\u{1b}[31m\u{9b}é\n";
        assert_eq!(printable(text), "a?[31m¿é\n");
        assert_eq!(printable(text).len(), text.len());
    }

    #[test]
    fn runs_join_neighbours() {
        assert_eq!(runs(&[0, 1, 2, 3, 60]), "0..3, 60");
    }
}
