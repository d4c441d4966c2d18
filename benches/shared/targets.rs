//! Targets.

/// Prints each number beside what it may be at most. Returns whether all are met; one that was not measured does not count.
pub(crate) fn met<'a>(checks: impl IntoIterator<Item = (&'a str, Option<f64>, f64)>) -> bool {
    println!();
    let mut met = true;
    for (name, value, limit) in checks {
        let Some(value) = value else {
            println!("{name:<54} not measured");
            continue;
        };
        let verdict = if value <= limit { "met" } else { "MISSED" };
        met &= value <= limit;
        println!("{name:<54} {value:>9.3} of at most {limit:>8.2}: {verdict}");
    }
    met
}
