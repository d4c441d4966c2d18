//! Carries lines out: asks the running Weir, prints, and says with which status the program ends.

use std::io::{BufRead, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use control::admin::client::{self, ClientError};
use control::admin::protocol::{Reply, Request};
use control::ipvs::command::{COMMANDS_MAX, Command, Forward, Key, Refusal, ServiceEntry, Timeouts};

use super::connections;
use super::help::{TRY, USAGE, VERSION};
use super::line::{Fault, Line, Listing, Subject, read};
use super::options::{Opt, Options};
use super::print::{HEAD, Table, rules};

/// What the program ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u8);

impl Status {
    const GOOD: Self = Self(0);
    /// A listing failed.
    const LISTING: Self = Self(1);
    /// The line is wrong.
    const USAGE: Self = Self(2);
    /// The command was refused, or the line not understood: -1 where the program is written in C.
    const REFUSED: Self = Self(255);

    pub(crate) fn code(self) -> ExitCode {
        self.0.into()
    }
}

/// Whether a restoration goes on after a line.
enum After {
    Next(Status),
    End(Status),
}

/// A conversation with a running Weir.
#[derive(Debug)]
pub(super) struct Session {
    socket: PathBuf,
    /// Commands of a restoration that were not sent yet.
    waiting: Vec<Command>,
}

impl Session {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket, waiting: Vec::new() }
    }

    /// Carries out a line without the program's name.
    pub(super) fn run(&mut self, line: &[String]) -> Status {
        match read(line) {
            Ok(Line::Restore) => self.restore(false),
            Ok(line) => match self.act(line) {
                After::Next(status) | After::End(status) => status,
            },
            Err(fault) => match told(fault) {
                After::Next(status) | After::End(status) => status,
            },
        }
    }

    /// What the program does without any arguments.
    pub(super) fn list_all(&mut self) -> Status {
        self.list(Listing { subject: Subject::Table, options: Options::default() })
    }

    /// Carries out the lines of standard input, as far as they go. A line's words are parted by blanks alone, and
    /// neither quotes nor comments are known; ipvsadm's own wrapper leaves lines out that begin with `#`, which is
    /// what `skips_comments` asks for.
    pub(super) fn restore(&mut self, skips_comments: bool) -> Status {
        let mut status = Status::GOOD;
        for line in std::io::stdin().lock().split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line);
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            if words.is_empty() || skips_comments && line.starts_with('#') {
                continue;
            }
            let after = match read(&words) {
                Ok(Line::Change(command)) => {
                    self.waiting.push(command);
                    if self.waiting.len() >= COMMANDS_MAX {
                        status = self.flush().unwrap_or(status);
                    } else {
                        status = Status::GOOD;
                    }
                    continue;
                }
                other => {
                    // What comes of it may depend on what was asked for before, and follows it in the output.
                    if let Some(Status::USAGE) = self.flush() {
                        return Status::USAGE;
                    }
                    match other {
                        Ok(Line::Restore) => told(Fault::Try),
                        Ok(line) => self.act(line),
                        Err(fault) => told(fault),
                    }
                }
            };
            match after {
                After::Next(of_line) => status = of_line,
                After::End(status) => return status,
            }
        }
        self.flush().unwrap_or(status)
    }

    /// Sends the commands that wait; the status of the last of them, if there were any.
    fn flush(&mut self) -> Option<Status> {
        let commands = std::mem::take(&mut self.waiting);
        if commands.is_empty() { None } else { Some(self.change(commands)) }
    }

    fn act(&mut self, line: Line) -> After {
        match line {
            Line::Help => After::End(print(&format!("{VERSION}{USAGE}"))),
            Line::Version => After::End(print(VERSION)),
            Line::Restore => After::End(self.restore(false)),
            Line::List(listing) => match self.list(listing) {
                Status::GOOD => After::Next(Status::GOOD),
                failed => After::End(failed),
            },
            Line::Change(command) => After::Next(self.change(vec![command])),
        }
    }

    /// Has commands carried out, and tells why one was refused. The status is the last one's.
    fn change(&mut self, commands: Vec<Command>) -> Status {
        let reply = self.ask(&Request::Ipvs { commands: commands.clone() });
        let results = match reply {
            Ok(Reply::Ipvs(results)) => results,
            Ok(other) => return unexpected(&other),
            Err(status) => return status,
        };
        let mut status = Status::GOOD;
        for (command, refusal) in commands.iter().zip(results) {
            status = match refusal {
                None => Status::GOOD,
                Some(refusal) => {
                    eprintln!("{}", message(Some(command), &refusal));
                    Status::REFUSED
                }
            };
        }
        status
    }

    fn list(&mut self, listing: Listing) -> Status {
        let Listing { subject, options } = listing;
        match subject {
            Subject::Connections => connections::list(&self.socket, options),
            // There is none, and nothing to tell of it.
            Subject::Daemon => Status::GOOD,
            Subject::One(key) => match self.table(Some(key)) {
                Ok(list) => print(&Table::new(options).print(list)),
                Err(status) => status,
            },
            Subject::Table => match self.table(None) {
                Ok(list) => print(&(HEAD.to_owned() + &Table::new(options).print(list))),
                Err(status) => status,
            },
            Subject::Rules => match self.table(None) {
                Ok(list) => {
                    if has_fullnat(&list) {
                        eprintln!("fullnat servers are written as -m: `weir show config` tells all of them");
                    }
                    print(&rules(list, options.has(Opt::Numeric)))
                }
                Err(status) => status,
            },
            Subject::Timeouts => match self.ask(&Request::IpvsTimeouts {}) {
                Ok(Reply::IpvsTimeouts(Timeouts { tcp_s, tcp_fin_s, udp_s })) => {
                    print(&format!("Timeout (tcp tcpfin udp): {tcp_s} {tcp_fin_s} {udp_s}\n"))
                }
                Ok(other) => unexpected(&other),
                Err(status) => status,
            },
        }
    }

    fn table(&self, service: Option<Key>) -> Result<Vec<ServiceEntry>, Status> {
        match self.ask(&Request::IpvsList { service })? {
            Reply::IpvsList(list) => Ok(list),
            Reply::Ipvs(refusals) => {
                for refusal in refusals.iter().flatten() {
                    eprintln!("{}", message(None, refusal));
                }
                Err(Status::LISTING)
            }
            other => Err(unexpected(&other)),
        }
    }

    fn ask(&self, request: &Request) -> Result<Reply, Status> {
        client::ask(&self.socket, request).map_err(|error| {
            let error = match error {
                ClientError::NotRunning(path) => {
                    format!(
                        "weir does not run here: nobody listens on {} (WEIR_SOCKET names another)",
                        path.display()
                    )
                }
                error => error.to_string(),
            };
            eprintln!("Can't initialize ipvs: {error}");
            Status::USAGE
        })
    }
}

fn has_fullnat(services: &[ServiceEntry]) -> bool {
    let mut servers = services.iter().flat_map(|service| &service.servers);
    servers.any(|entry| entry.server.forward == Forward::FullNat)
}

fn unexpected(reply: &Reply) -> Status {
    match reply {
        Reply::Error { message } => eprintln!("{message}"),
        _ => eprintln!("the reply cannot be read, is it another version of weir?"),
    }
    Status::REFUSED
}

/// Prints to standard output. Where its reader is gone, that is as good as read.
pub(super) fn print(text: &str) -> Status {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("{error}");
            Status::LISTING
        }
        _ => Status::GOOD,
    }
}

fn told(fault: Fault) -> After {
    match fault {
        Fault::Fail(status, message) => {
            eprintln!("{message}");
            After::End(Status(status))
        }
        Fault::Try => {
            eprintln!("{TRY}");
            After::End(Status::REFUSED)
        }
        Fault::Misspelt(message) => {
            eprintln!("{message}");
            After::Next(Status::REFUSED)
        }
    }
}

/// What ipvsadm says of a refusal; without a command, of a listing's.
fn message(command: Option<&Command>, refusal: &Refusal) -> String {
    use Command as C;
    let text = match (refusal, command) {
        (Refusal::Weir(message), _) => return message.clone(),
        (Refusal::Exists, Some(C::AddService(_))) => "Service already exists",
        (Refusal::Exists, Some(C::AddServer(..))) => "Destination already exists",
        (Refusal::Exists, _) => "File exists",
        (Refusal::NoService, Some(C::AddServer(..) | C::EditServer(..) | C::DeleteServer(..))) => {
            "Service not defined"
        }
        (Refusal::NoService, Some(C::StopDaemon(_))) => "No daemon is running",
        (Refusal::NoService, _) => "No such service",
        (Refusal::NoEntry, Some(C::AddService(_) | C::EditService(_))) => {
            "Scheduler or persistence engine not found"
        }
        (Refusal::NoEntry, Some(C::EditServer(..) | C::DeleteServer(..))) => "No such destination",
        (Refusal::NoEntry, _) => "No such file or directory",
        (Refusal::Invalid, _) => {
            "Invalid operation.  Possibly wrong module version, address not unicast, ..."
        }
        (Refusal::Range, _) => "Numerical result out of range",
        (Refusal::NoMemory, _) => "Memory allocation problem",
    };
    text.to_owned()
}
