//! Client programs, run in a namespace: curl, dig, iperf3, wrk and ping.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::namespace::Namespace;
use crate::process::{Process, Said, run};
use crate::servers::{BLOB_PATH, DNS_NAME, IPERF_PORT};

/// How long one exchange may take.
const LIMIT: Duration = Duration::from_secs(5);

/// What curl got of one URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// HTTP status.
    pub status: u16,
    /// The page, without the newline at its end.
    pub text: String,
}

/// Fetches `/` so many times with one curl, each time by a new connection.
///
/// # Errors
/// When any of the requests fails, with what curl said.
pub fn curl(client: &Namespace, server: SocketAddr, requests: u32) -> Result<Vec<Page>> {
    let mut command = client.command("curl");
    command
        .args(["--silent", "--show-error", "--fail-early", "--header", "Connection: close"])
        .args(["--max-time", &LIMIT.as_secs().to_string(), "--write-out", "%{http_code}\\n"])
        .arg(format!("http://{server}/?[1-{requests}]"));
    let said = run(&mut command, LIMIT * requests.max(1))?;
    ensure!(said.status.success(), "curl of {server}: {}", said.err.trim());
    // Each page ends in a newline, and so does each status.
    let lines: Vec<&str> = said.out.lines().collect();
    let page = |pair: &[&str]| match pair {
        [text, status] => Some(Page { status: status.parse().ok()?, text: (*text).to_owned() }),
        _ => None,
    };
    let pages: Option<Vec<Page>> = lines.chunks(2).map(page).collect();
    pages.with_context(|| format!("curl of {server} printed: {}", said.out))
}

/// Fetches the large file once.
///
/// # Errors
/// When it does not come whole within 30 s.
pub fn download(client: &Namespace, server: SocketAddr) -> Result<Vec<u8>> {
    let mut command = client.command("curl");
    command
        .args(["--silent", "--show-error", "--fail", "--max-time", "30"])
        .arg(format!("http://{server}/{BLOB_PATH}"));
    let output = command.stdin(Stdio::null()).output().context("running curl")?;
    ensure!(output.status.success(), "curl of {server}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout)
}

/// Sends `body` to the web server once.
///
/// # Errors
/// When it is not taken in whole within 30 s.
pub fn upload(client: &Namespace, server: SocketAddr, body: &Path) -> Result<()> {
    let mut command = client.command("curl");
    command
        .args(["--silent", "--show-error", "--fail", "--max-time", "30", "--header", "Expect:"])
        .args(["--output", "/dev/null", "--write-out", "%{size_upload}", "--data-binary"])
        .arg(format!("@{}", body.display()))
        .arg(format!("http://{server}/"));
    let said = run(&mut command, LIMIT * 4)?;
    ensure!(said.status.success(), "curl to {server}: {}", said.err.trim());
    let sent: u64 = said.out.trim().parse().with_context(|| format!("curl printed {:?}", said.out))?;
    ensure!(sent == std::fs::metadata(body)?.len(), "{sent} bytes were sent to {server}");
    Ok(())
}

/// How a DNS question travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One datagram each way.
    Udp,
    /// A connection.
    Tcp,
}

/// Asks a DNS server so many times, each time from a new port, which backend it is; the answers, one a question.
///
/// # Errors
/// When an answer does not come within a second.
pub fn dig(
    client: &Namespace,
    server: SocketAddr,
    transport: Transport,
    questions: u32,
) -> Result<Vec<String>> {
    let mut command = client.command("dig");
    command.args(["+short", "+tries=1", "+time=1", "-p", &server.port().to_string()]);
    if transport == Transport::Tcp {
        command.arg("+tcp");
    }
    command.arg(format!("@{}", server.ip()));
    for _ in 0..questions {
        command.args([DNS_NAME, "TXT"]);
    }
    let said = run(&mut command, LIMIT + Duration::from_secs(1) * questions)?;
    ensure!(said.status.success(), "dig of {server}: {}", said.out.trim());
    Ok(said.out.lines().map(|line| line.trim_matches('"').to_owned()).collect())
}

/// Which way iperf3's bulk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    Upload,
    /// To the client.
    Download,
}

/// Sends TCP as fast as it goes for `duration`; the receiver's rate, bits a second. Its connections must all reach
/// the same backend.
///
/// # Errors
/// When the connection fails or iperf3's report cannot be read.
pub fn iperf3(client: &Namespace, server: IpAddr, direction: Direction, duration: Duration) -> Result<f64> {
    let mut command = client.command("iperf3");
    command.args(["--json", "--connect-timeout", "3000", "--port", &IPERF_PORT.to_string()]);
    command.args(["--time", &duration.as_secs().max(1).to_string(), "--client", &server.to_string()]);
    if direction == Direction::Download {
        command.arg("--reverse");
    }
    let started = Instant::now();
    let rate = loop {
        match iperf3_rate(&run(&mut command, duration + LIMIT * 2)?) {
            // Between two tests iperf3's server has not taken note of the end of the last one yet, or closes its listening
            // socket for a moment, with whoever it has not accepted yet.
            Err(error) if is_between_tests(&error) && started.elapsed() < LIMIT => {
                std::thread::sleep(Duration::from_millis(500));
            }
            done => break done,
        }
    };
    rate.with_context(|| format!("iperf3 of {server}"))
}

fn is_between_tests(error: &anyhow::Error) -> bool {
    let told = format!("{error:#}");
    [
        "the server is busy running a test",
        "unable to connect to server: Connection re",
        "before its streams: unable to receive control message: Connection reset",
    ]
    .iter()
    .any(|between| told.contains(between))
}

fn iperf3_rate(said: &Said) -> Result<f64> {
    let report: Value =
        serde_json::from_str(&said.out).with_context(|| format!("{}{}", said.out, said.err))?;
    let rate = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    let error = report.get("error").and_then(Value::as_str).unwrap_or("it reports no rate");
    let streams = report.pointer("/start/connected").and_then(Value::as_array);
    let before = if streams.is_some_and(Vec::is_empty) { "before its streams: " } else { "" };
    rate.filter(|rate| said.status.success() && *rate > 0.0).with_context(|| format!("{before}{error}"))
}

/// Starts wrk over kept connections; [`wrk_result`] reads what it says at its end.
///
/// # Errors
/// When it cannot be started.
pub fn wrk(
    client: &Namespace,
    server: SocketAddr,
    duration: Duration,
    log: std::path::PathBuf,
) -> Result<Process> {
    wrk_with(client, server, 16, duration, log)
}

/// [`wrk`] with so many connections.
///
/// # Errors
/// When it cannot be started.
pub fn wrk_with(
    client: &Namespace,
    server: SocketAddr,
    connections: u32,
    duration: Duration,
    log: std::path::PathBuf,
) -> Result<Process> {
    let mut command = client.command("wrk");
    command.args(["--threads", "1", "--connections", &connections.to_string(), "--timeout", "5s"]);
    command.arg(format!("--duration={}s", duration.as_secs())).arg(format!("http://{server}/"));
    Process::spawn("wrk", command, log)
}

/// What wrk counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wrk {
    /// Requests answered.
    pub requests: u64,
    /// Connections that could not be opened.
    pub connect: u64,
    /// Connections that were closed or reset.
    pub read: u64,
    /// Requests that could not be sent.
    pub write: u64,
    /// Answers later than the timeout: their connections carry on. For an answer that never comes wrk counts nothing.
    pub late: u64,
    /// Answers other than 2xx and 3xx.
    pub status: u64,
}

impl Wrk {
    /// All that went wrong, but for what was only late.
    pub fn broken(&self) -> u64 {
        self.connect + self.read + self.write + self.status
    }

    /// All that went wrong.
    pub fn errors(&self) -> u64 {
        self.broken() + self.late
    }
}

/// Reads wrk's report.
///
/// # Errors
/// When it is not one.
pub fn wrk_result(report: &str) -> Result<Wrk> {
    let numbers = |line: &str| -> Vec<u64> {
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    };
    let (mut result, mut requests) = (Wrk::default(), None);
    for line in report.lines().map(str::trim) {
        if line.contains(" requests in ") {
            requests = numbers(line).first().copied();
        } else if line.starts_with("Socket errors:") {
            let [connect, read, write, late] = numbers(line)[..] else {
                bail!("wrk printed {line:?}");
            };
            result = Wrk { connect, read, write, late, ..result };
        } else if let Some(count) = line.strip_prefix("Non-2xx or 3xx responses:") {
            result.status = count.trim().parse()?;
        }
    }
    Ok(Wrk { requests: requests.with_context(|| format!("wrk printed:\n{report}"))?, ..result })
}

/// Whether an ICMP echo request is answered within a second.
///
/// # Errors
/// When ping cannot be run.
pub fn ping(client: &Namespace, addr: IpAddr) -> Result<bool> {
    Ok(run(client.command("ping").args(["-c", "1", "-W", "1", &addr.to_string()]), LIMIT)?.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_tells_late_answers_from_broken_connections() {
        let head = "Running 1s test @ http://10.1.0.100/\n  1 threads and 16 connections\n";
        for (name, tail, want) in [
            ("none", "  9 requests in 1.00s, 1.55KB read\n", Some(Wrk { requests: 9, ..Wrk::default() })),
            (
                "of sockets",
                "  9 requests in 1.00s, 1.55KB read\n  Socket errors: connect 1, read 2, write 3, timeout 4\n",
                Some(Wrk { requests: 9, connect: 1, read: 2, write: 3, late: 4, status: 0 }),
            ),
            (
                "of answers",
                "  9 requests in 1.00s, 1.55KB read\n  Non-2xx or 3xx responses: 7\n",
                Some(Wrk { requests: 9, status: 7, ..Wrk::default() }),
            ),
            ("not a report", "unable to connect\n", None),
        ] {
            assert_eq!(wrk_result(&format!("{head}{tail}")).ok(), want, "{name}");
        }
    }
}
