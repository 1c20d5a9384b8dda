//! Trace files: real excerpts, broken rows that are named by line, and what the options keep.

use proptest::prelude::*;
use rally_load::trace_file::{TraceError, TraceFormat, TraceOptions, read};
use rally_load::{Load, LoadLimits, LoadRequest};
use std::io::Cursor;

/// The first rows of `AzureLLMInferenceTrace_conv` (Azure public dataset, CC-BY 4.0; Patel et al., Splitwise, ISCA 2024).
const AZURE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
2023-11-16 18:15:51.3910170,91,16
";

/// The first rows of Mooncake's conversation trace (FAST '25, Apache-2.0), their `hash_ids` shortened.
const MOONCAKE: &str = r#"{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 0, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14]}
{"timestamp": 3000, "input_length": 2290, "output_length": 316, "hash_ids": [0]}
"#;

fn parse(text: &str, format: TraceFormat, options: TraceOptions) -> Result<Vec<LoadRequest>, TraceError> {
    read(Cursor::new(text), format, options)
}

fn shape(requests: &[LoadRequest]) -> Vec<(i64, usize, usize)> {
    requests.iter().map(|r| ((r.arrival_s * 1e3).round() as i64, r.prompt_tokens, r.output_tokens)).collect()
}

#[test]
fn excerpts_of_both_kinds_are_read() {
    let azure = parse(AZURE, TraceFormat::AzureCsv, TraceOptions::default()).expect("the excerpt is in order");
    assert_eq!(shape(&azure), [(0, 374, 44), (4315, 396, 109), (4542, 879, 55), (4710, 91, 16)]);
    let crlf = parse(&AZURE.replace('\n', "\r\n"), TraceFormat::AzureCsv, TraceOptions::default());
    assert_eq!(crlf.expect("line ends do not matter"), azure);
    let mooncake = parse(MOONCAKE, TraceFormat::MooncakeJsonl, TraceOptions::default()).expect("it is in order");
    assert_eq!(shape(&mooncake), [(0, 6758, 500), (0, 7322, 490), (3000, 2290, 316)]);
}

#[test]
fn options_scale_and_cut() {
    let half = TraceOptions { time_scale: 0.5, most: Some(3), within_s: None };
    let azure = parse(AZURE, TraceFormat::AzureCsv, half).expect("in order");
    assert_eq!(shape(&azure), [(0, 374, 44), (2157, 396, 109), (2271, 879, 55)]);
    // Seconds are the trace's own, whatever the scale.
    let begin = TraceOptions { time_scale: 0.5, most: None, within_s: Some(4.4) };
    assert_eq!(parse(AZURE, TraceFormat::AzureCsv, begin).expect("in order").len(), 2);
    let (header, rows) = AZURE.split_once('\n').expect("a header");
    let backwards: Vec<&str> = rows.lines().rev().collect();
    let backwards = format!("{header}\n{}", backwards.join("\n"));
    let sorted = parse(&backwards, TraceFormat::AzureCsv, TraceOptions::default()).expect("order does not matter");
    assert_eq!(shape(&sorted), [(0, 374, 44), (4315, 396, 109), (4542, 879, 55), (4710, 91, 16)]);
}

#[test]
fn columns_may_stand_in_any_order_beside_others() {
    let text = "id,generatedtokens,ContextTokens,TIMESTAMP\n1,9,8,5.5\n2,7,6,6.0\n";
    let requests = parse(text, TraceFormat::AzureCsv, TraceOptions::default()).expect("in order");
    assert_eq!(shape(&requests), [(0, 8, 9), (500, 6, 7)]);
}

#[track_caller]
fn refused(text: &str, format: TraceFormat, said: &str) {
    let error = parse(text, format, TraceOptions::default()).expect_err("a broken trace").to_string();
    assert!(error.contains(said), "`{error}` should say `{said}`");
}

#[test]
fn broken_rows_are_named_by_their_line() {
    let csv = |row: &str| format!("TIMESTAMP,ContextTokens,GeneratedTokens\n1.0,5,5\n\n{row}\n");
    for (row, said) in [
        ("2.0,5", "line 4: 3 columns are expected, and there are 2"),
        ("2.0,5,5,5", "line 4: 3 columns are expected, and there are 4"),
        ("soon,5,5", "line 4: `TIMESTAMP` is a time"),
        ("2.0,-5,5", "line 4: `ContextTokens` is a number of tokens"),
        ("2.0,0,5", "line 4: `ContextTokens` is a number of tokens"),
        ("2.0,5,", "line 4: `GeneratedTokens` is a number of tokens"),
        ("2.0,5,1e3", "line 4: `GeneratedTokens` is a number of tokens"),
        ("2.0,5,99999999999", "line 4: `GeneratedTokens` is a number of tokens"),
    ] {
        refused(&csv(row), TraceFormat::AzureCsv, said);
    }
    let jsonl = |row: &str| format!("{{\"timestamp\":0,\"input_length\":5,\"output_length\":5}}\n{row}\n");
    for (row, said) in [
        ("{", "line 2: no JSON object"),
        ("[1]", "line 2: no JSON object"),
        (r#"{"timestamp":1,"input_length":5}"#, "line 2: no key `output_length`"),
        (r#"{"input_length":5,"output_length":5}"#, "line 2: no key `timestamp`"),
        (r#"{"timestamp":"1","input_length":5,"output_length":5}"#, "line 2: `timestamp` is a number of milliseconds"),
        (r#"{"timestamp":-1,"input_length":5,"output_length":5}"#, "line 2: `timestamp` is a number of milliseconds"),
        (r#"{"timestamp":1,"input_length":5.5,"output_length":5}"#, "line 2: `input_length` is a number of tokens"),
        (r#"{"timestamp":1,"input_length":5,"output_length":null}"#, "line 2: `output_length` is a number of tokens"),
    ] {
        refused(&jsonl(row), TraceFormat::MooncakeJsonl, said);
    }
    refused("a,b\n1,2\n", TraceFormat::AzureCsv, "line 1: no column `TIMESTAMP`");
    refused("", TraceFormat::AzureCsv, "no requests");
    refused("\n", TraceFormat::MooncakeJsonl, "no requests");
    let latin1 = [b"TIMESTAMP,ContextTokens,GeneratedTokens\n1.0,5,5\n".as_slice(), &[0xe9, b'\n']].concat();
    let error = read(Cursor::new(latin1), TraceFormat::AzureCsv, TraceOptions::default()).expect_err("no UTF-8");
    assert!(error.to_string().starts_with("line 3: cannot be read"), "{error}");
}

#[test]
fn clipping_keeps_the_arrivals_and_what_fits() {
    let request = |prompt_tokens, output_tokens| LoadRequest { arrival_s: 1.0, prompt_tokens, output_tokens };
    let mut load = Load { requests: vec![request(10, 10), request(100, 10), request(5, 500)], max_concurrency: None };
    let limits = LoadLimits { total_tokens: 64 };
    let error = load.check(limits).expect_err("the second is too long");
    assert!(error.to_string().contains("request 2 of the load has 100 prompt and 10 output tokens"), "{error}");
    assert_eq!(load.clip(limits), 2);
    assert_eq!(shape(&load.requests), [(1000, 10, 10), (1000, 54, 10), (1000, 1, 63)]);
    load.check(limits).expect("everything fits now");
    assert_eq!(load.clip(limits), 0);
}

proptest! {
    /// Whatever is in the file: an answer or an error, no panic; and what is read back is what was written.
    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for format in [TraceFormat::AzureCsv, TraceFormat::MooncakeJsonl] {
            let _ = read(Cursor::new(&bytes), format, TraceOptions::default());
        }
    }

    #[test]
    fn rows_survive_being_written(rows in proptest::collection::vec((0u32..1_000_000, 1usize..9999, 1usize..9999), 1..40)) {
        let mut sorted = rows.clone();
        sorted.sort_by_key(|row| row.0);
        let want: Vec<_> = sorted.iter().map(|row| (i64::from(row.0 - sorted[0].0), row.1, row.2)).collect();
        let csv: String = rows.iter().map(|(ms, i, o)| format!("{:.3},{i},{o}\n", f64::from(*ms) / 1e3)).collect();
        let csv = format!("TIMESTAMP,ContextTokens,GeneratedTokens\n{csv}");
        let jsonl: String = rows
            .iter()
            .map(|(ms, i, o)| format!("{{\"timestamp\":{ms},\"input_length\":{i},\"output_length\":{o}}}\n"))
            .collect();
        for (text, format) in [(csv, TraceFormat::AzureCsv), (jsonl, TraceFormat::MooncakeJsonl)] {
            let read = parse(&text, format, TraceOptions::default()).expect("written in order");
            prop_assert_eq!(shape(&read), want.clone());
        }
    }
}
