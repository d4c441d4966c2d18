//! Splits a command line into options and their arguments, by the rules of popt: short options in one word, an
//! argument in the same word or the next, `=` between long option and argument, other words anywhere in between.

use super::options::{Argument, SPELLINGS, Spelling, Word};

/// What is wrong with the splitting, and with which word of the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Misspelt {
    pub(super) at: String,
    pub(super) what: &'static str,
}

/// A line on its way from left to right.
#[derive(Debug)]
pub(super) struct Words<'a> {
    line: &'a [String],
    next: usize,
    /// The rest of a word of short options.
    cluster: Option<&'a str>,
    /// After `--`.
    only_others: bool,
    others: Vec<&'a str>,
}

impl<'a> Words<'a> {
    /// A line without the program's name.
    pub(super) fn new(line: &'a [String]) -> Self {
        Self { line, next: 0, cluster: None, only_others: false, others: Vec::new() }
    }

    /// The next option with its argument; `None` at the end of the line.
    pub(super) fn next(&mut self) -> Result<Option<(Word, Option<&'a str>)>, Misspelt> {
        if let Some(cluster) = self.cluster.take() {
            return self.short(cluster).map(Some);
        }
        while let Some(word) = self.take() {
            let Some(letters) = word.strip_prefix('-').filter(|rest| !rest.is_empty() && !self.only_others)
            else {
                self.others.push(word);
                continue;
            };
            return match letters.strip_prefix('-') {
                Some("") => {
                    self.only_others = true;
                    continue;
                }
                Some(long) => self.long(long),
                None => self.short(letters),
            }
            .map(Some);
        }
        Ok(None)
    }

    /// The words that are no options, seen so far, in their order.
    pub(super) fn others(self) -> impl Iterator<Item = &'a str> {
        self.others.into_iter()
    }

    /// The word that was looked at last.
    pub(super) fn last(&self) -> &'a str {
        self.next.checked_sub(1).and_then(|last| self.line.get(last)).map_or("", String::as_str)
    }

    fn take(&mut self) -> Option<&'a str> {
        let word = self.line.get(self.next)?;
        self.next += 1;
        Some(word)
    }

    fn misspelt(&self, what: &'static str) -> Misspelt {
        Misspelt { at: self.last().to_owned(), what }
    }

    fn long(&mut self, text: &'a str) -> Result<(Word, Option<&'a str>), Misspelt> {
        let (name, given) = text.split_once('=').map_or((text, None), |(name, given)| (name, Some(given)));
        let found = SPELLINGS.iter().find(|spelling| spelling.long == name);
        let spelling = found.ok_or_else(|| self.misspelt("unknown option"))?;
        self.with_argument(spelling, given)
    }

    fn short(&mut self, letters: &'a str) -> Result<(Word, Option<&'a str>), Misspelt> {
        let mut rest = letters.chars();
        let letter = rest.next();
        let found = SPELLINGS.iter().find(|spelling| spelling.short.is_some() && spelling.short == letter);
        let spelling = found.ok_or_else(|| self.misspelt("unknown option"))?;
        let rest = rest.as_str();
        let given = rest.strip_prefix('=');
        if spelling.argument == Argument::None && given.is_none() {
            self.cluster = Some(rest).filter(|rest| !rest.is_empty());
            return Ok((spelling.word, None));
        }
        self.with_argument(spelling, given.or(Some(rest).filter(|rest| !rest.is_empty())))
    }

    /// Takes the argument from the same word if it is `given` there, else from the next.
    fn with_argument(
        &mut self,
        spelling: &Spelling,
        given: Option<&'a str>,
    ) -> Result<(Word, Option<&'a str>), Misspelt> {
        let argument = match (spelling.argument, given) {
            (Argument::None, Some(_)) => return Err(self.misspelt("option does not take an argument")),
            (Argument::None, None) => None,
            (_, Some(given)) => Some(given),
            (Argument::Needed, None) => match self.take() {
                None => return Err(self.misspelt("missing argument")),
                next => next,
            },
            (Argument::Optional, None) => {
                let follows = self.line.get(self.next).is_some_and(|next| !next.starts_with('-'));
                if follows { self.take() } else { None }
            }
        };
        Ok((spelling.word, argument))
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::{Command, Opt};
    use super::*;

    type Seen<'a> = (Vec<(Word, Option<&'a str>)>, Vec<&'a str>);

    type Want<'a> = Result<Seen<'a>, (&'a str, &'static str)>;

    fn read(line: &[String]) -> Result<Seen<'_>, (String, &'static str)> {
        let mut words = Words::new(line);
        let mut seen = Vec::new();
        while let Some(word) = words.next().map_err(|fault| (fault.at, fault.what))? {
            seen.push(word);
        }
        Ok((seen, words.others().collect()))
    }

    #[test]
    fn options_are_told_apart_as_popt_does() {
        const LIST: (Word, Option<&str>) = (Word::Command(Command::List), None);
        const NUMERIC: (Word, Option<&str>) = (Word::Option(Opt::Numeric), None);
        const fn scheduler(name: &str) -> (Word, Option<&str>) {
            (Word::Option(Opt::Scheduler), Some(name))
        }
        const fn persistent(time: Option<&str>) -> (Word, Option<&str>) {
            (Word::Option(Opt::Persistent), time)
        }
        let cases: [(&str, Want<'_>); 20] = [
            ("-L -n", Ok((vec![LIST, NUMERIC], vec![]))),
            ("-Ln", Ok((vec![LIST, NUMERIC], vec![]))),
            ("x --list y --numeric", Ok((vec![LIST, NUMERIC], vec!["x", "y"]))),
            ("-s rr", Ok((vec![scheduler("rr")], vec![]))),
            ("-srr", Ok((vec![scheduler("rr")], vec![]))),
            ("-s=rr", Ok((vec![scheduler("rr")], vec![]))),
            ("-Lsrr", Ok((vec![LIST, scheduler("rr")], vec![]))),
            ("--scheduler=rr", Ok((vec![scheduler("rr")], vec![]))),
            ("--scheduler rr", Ok((vec![scheduler("rr")], vec![]))),
            ("-s -n", Ok((vec![scheduler("-n")], vec![]))),
            ("-p", Ok((vec![persistent(None)], vec![]))),
            ("-p -n", Ok((vec![persistent(None), NUMERIC], vec![]))),
            ("-p 5", Ok((vec![persistent(Some("5"))], vec![]))),
            ("-L -- -n", Ok((vec![LIST], vec!["-n"]))),
            ("-L -", Ok((vec![LIST], vec!["-"]))),
            ("-Lq", Err(("-Lq", "unknown option"))),
            ("--lis", Err(("--lis", "unknown option"))),
            ("-s", Err(("-s", "missing argument"))),
            ("-n=3", Err(("-n=3", "option does not take an argument"))),
            ("--numeric=3", Err(("--numeric=3", "option does not take an argument"))),
        ];
        for (line, want) in cases {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let got = read(&words);
            assert_eq!(got, want.map_err(|(at, what)| (at.to_owned(), what)), "{line}");
        }
    }
}
