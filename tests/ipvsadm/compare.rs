//! Whether two outcomes of a command are the same, as far as they have to be.

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) status: i64,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// What differs, or `None`.
pub(crate) fn differs(command: &str, want: &Outcome, got: &Outcome, volatile: bool) -> Option<String> {
    let has = |options: &[&str]| command.split_whitespace().any(|word| options.contains(&word));
    let out = |outcome: &Outcome| {
        let mut lines: Vec<String> = outcome.out.lines().map(str::to_owned).collect();
        if volatile {
            lines.iter_mut().for_each(|line| *line = masked(line, has(&["--stats", "--rate"])));
        }
        if has(&["-c", "--connection"]) && lines.len() > 2 {
            lines[2..].sort();
        }
        if has(&["--nosort"]) {
            lines = with_services_sorted(lines);
        }
        lines
    };
    let same = (want.status, &want.err) == (got.status, &got.err)
        && out(want) == out(got)
        && want.out.ends_with('\n') == got.out.ends_with('\n');
    if same {
        return None;
    }
    let part = |name: &str, want: &str, got: &str| {
        if want == got { String::new() } else { format!("{name} was recorded as\n{want}and is\n{got}") }
    };
    let text = |outcome| out(outcome).into_iter().map(|line| line + "\n").collect::<String>();
    Some(format!(
        "{}{}{}",
        part("status", &format!("{}\n", want.status), &format!("{}\n", got.status)),
        part("standard output", &text(want), &text(got)),
        part("standard error", &want.err, &got.err)
    ))
}

/// A line without what varies: expiry times, and the counts of tables that have nothing else. Its width stays.
fn masked(line: &str, has_counts: bool) -> String {
    let is_row =
        line.starts_with("  -> ") || ["TCP", "UDP", "SCTP", "FWM"].iter().any(|name| line.starts_with(name));
    if !is_row {
        return line.to_owned();
    }
    let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    let mut columns = 0;
    for word in &mut words {
        let is_clock =
            word.len() == 5 && word.as_bytes()[2] == b':' && word.starts_with(|c: char| c.is_ascii_digit());
        let is_number = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
        if is_clock && !has_counts {
            *word = "mm:ss".to_owned();
        } else if is_number && has_counts {
            columns += 1;
            *word = String::new();
        }
    }
    if columns == 0 {
        return words.join(" ");
    }
    // Numbers are to the right of their columns: blanks and digits together have the width.
    let name: String = words.join(" ").trim_end().to_owned();
    format!("{name} and {columns} numbers in {} characters", line.len())
}

/// Services with their servers in an order of their own.
fn with_services_sorted(lines: Vec<String>) -> Vec<String> {
    let mut services: Vec<Vec<String>> = Vec::new();
    let head = lines.iter().position(|line| line.starts_with("  -> Remote")).map_or(0, |last| last + 1);
    let mut sorted = lines[..head].to_vec();
    for line in &lines[head..] {
        match services.last_mut() {
            Some(service) if line.starts_with("  -> ") => service.push(line.clone()),
            _ => services.push(vec![line.clone()]),
        }
    }
    services.sort();
    sorted.extend(services.into_iter().flatten());
    sorted
}
