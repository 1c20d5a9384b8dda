//! Strict JSON with the place and the remedy of what is wrong.

use crate::words;
use jsonc_parser::ast::Value;
use jsonc_parser::errors::{ParseError, ParseErrorKind};
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use std::ops::Range;

pub(super) struct SyntaxFault {
    pub(super) span: Range<usize>,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

/// Strict JSON: what the tolerant parser lets through, serde_json refuses.
pub(super) fn parse_json(text: &str) -> Result<Value<'_>, SyntaxFault> {
    let strict = ParseOptions {
        allow_comments: false,
        allow_loose_object_property_names: false,
        allow_trailing_commas: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    let ast = parse_to_ast(text, &CollectOptions::default(), &strict).map_err(|error| syntax_fault(&error, text))?;
    if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
        let at = offset_of(text, error.line(), error.column());
        let message = format!("{error}");
        let message = message.split(" at line ").next().unwrap_or_default().to_owned();
        return Err(SyntaxFault { span: at..at + 1, message: format!("this is not JSON: {message}"), help: None });
    }
    ast.value.ok_or(SyntaxFault { span: 0..0, message: "there is no JSON value".into(), help: None })
}

/// Byte offset of serde_json's line and (byte) column.
fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let mut at = (start + column.saturating_sub(1)).min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn syntax_fault(error: &ParseError, text: &str) -> SyntaxFault {
    use ParseErrorKind as Kind;
    let range = error.range();
    let found = text.get(range.start..range.end).unwrap_or_default();
    let before = text.get(..range.start).unwrap_or_default();
    let zero =
        before.ends_with('0') && text.get(range.start..).unwrap_or_default().starts_with(|c: char| c.is_ascii_digit());
    if zero && matches!(error.kind(), Kind::ExpectedComma) {
        let message = "this is not JSON: a number begins with 0".to_owned();
        return SyntaxFault {
            span: range.start - 1..range.start,
            message,
            help: Some("remove the leading zero".into()),
        };
    }
    let help = remedy(error.kind(), found);
    let message = match error.kind() {
        Kind::UnexpectedWord | Kind::UnexpectedToken | Kind::UnexpectedTokenInObject if !found.is_empty() => {
            format!("this is not JSON: unexpected `{}`", words::short(found))
        }
        kind => format!("this is not JSON: {}", lower_first(&kind.to_string())),
    };
    let help = (!help.is_empty()).then(|| help.to_owned());
    // An object that never ends is marked where it begins.
    let end = match error.kind() {
        Kind::UnterminatedObject | Kind::UnterminatedArray => range.start + 1,
        _ => range.end.max(range.start),
    };
    SyntaxFault { span: range.start..end, message, help }
}

fn remedy(kind: &ParseErrorKind, found: &str) -> &'static str {
    use ParseErrorKind as Kind;
    match kind {
        Kind::CommentsNotAllowed | Kind::UnterminatedCommentBlock => "graph files are plain JSON: remove the comment",
        Kind::TrailingCommasNotAllowed => "remove the comma",
        Kind::ExpectedComma => "put a comma between the two",
        Kind::SingleQuotedStringsNotAllowed => "use double quotes",
        Kind::ExpectedStringObjectProperty => "put keys in double quotes",
        Kind::UnexpectedWord | Kind::UnexpectedToken => match found {
            "NaN" | "Infinity" | "nan" | "inf" => "JSON has finite numbers only",
            "True" | "False" | "None" => "JSON writes true, false and null in lower case",
            _ => "put words in double quotes",
        },
        Kind::UnexpectedTokenInObject if found == "," => "remove the comma",
        Kind::UnexpectedTokenInObject => "a key in double quotes was expected",
        Kind::UnterminatedObject => "a `}` is missing for the brace marked here",
        Kind::UnterminatedArray => "a `]` is missing for the bracket marked here",
        Kind::NonFiniteNumbersNotAllowed => "write a finite number",
        Kind::MultipleRootJsonValues => "a file holds one deployment: remove what follows the first value",
        _ => "",
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if !text.starts_with("Inf") => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}
