//! The backends' servers: nginx, dnsmasq and iperf3, the distribution's own programs with a configuration each.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::namespace::Namespace;
use crate::process::Process;
use crate::topology::{Family, Topology};

/// Where nginx listens, on every address.
pub const HTTP_PORT: u16 = 80;
/// The path of the page that is the address of whoever asks, as nginx sees it.
pub const FROM_PATH: &str = "from";
/// Where dnsmasq listens, UDP and TCP.
pub const DNS_PORT: u16 = 53;
/// Where nginx listens for connections that begin with a PROXY protocol header; its page is the client's address.
pub const PROXIED_PORT: u16 = 81;
/// Where vsftpd listens.
pub const FTP_PORT: u16 = 21;
/// Lines of vsftpd's file, a megabyte: more than the server's socket takes before the client has acknowledged some. So the data
/// connection stands at the client before the server says on the other one that all is sent. curl (7.88) takes the reverse
/// for an error, and between two connections nothing but that keeps an order.
pub const FTP_LINES: usize = 100_000;
/// Where iperf3 listens.
pub const IPERF_PORT: u16 = 5201;
/// The name whose TXT record is the backend's name.
pub const DNS_NAME: &str = "who.test";
/// The path of the large file ([`blob`]).
pub const BLOB_PATH: &str = "blob";
/// How large that file is, bytes.
pub const BLOB_BYTES: usize = 10_000_000;

/// Requests of one connection, before nginx ends it: more than any test makes, so that a kept one is kept.
const KEPT_FOR: u32 = 1_000_000_000;
const START_LIMIT: Duration = Duration::from_secs(10);

/// What a backend calls itself, in web pages and DNS answers.
pub fn backend_name(number: u8) -> String {
    format!("backend-{number}")
}

/// The content of the large file: every four bytes differ from their neighbours, so nothing can be swapped or
/// repeated unseen.
pub fn blob() -> Vec<u8> {
    const KNUTH: u32 = 2_654_435_761;
    (0u32..).flat_map(|word| word.wrapping_mul(KNUTH).to_be_bytes()).take(BLOB_BYTES).collect()
}

/// All servers of all backends, running until this goes out of scope.
#[derive(Debug)]
pub struct Servers(#[expect(dead_code, reason = "kept for their ends")] Vec<Process>);

impl Servers {
    /// Starts nginx, dnsmasq and iperf3 in every backend and waits until they listen.
    ///
    /// # Errors
    /// When one does not start, with what it wrote.
    pub fn start(topology: &Topology) -> Result<Self> {
        let mut servers = Vec::new();
        for (number, namespace) in (1..).zip(&topology.backends) {
            let directory = topology.scratch().join(backend_name(number));
            fs::create_dir(&directory)?;
            servers.extend([
                nginx(namespace, number, &directory)?,
                dnsmasq(namespace, number, &directory)?,
                iperf3(namespace, &directory)?,
            ]);
        }
        Ok(Self(servers))
    }
}

/// A web server whose every page is the backend's name, but for [`FROM_PATH`] and the large file; at [`PROXIED_PORT`] each page is
/// the client's address.
///
/// # Errors
/// When it does not start, with what it wrote.
pub fn nginx(namespace: &Namespace, number: u8, directory: &Path) -> Result<Process> {
    let name = backend_name(number);
    let path = directory.join("nginx.conf");
    let temp = directory.join("nginx");
    fs::create_dir(&temp)?;
    fs::write(directory.join(BLOB_PATH), blob())?;
    fs::write(
        &path,
        format!(
            "user root;\nworker_processes 1;\ndaemon off;\npid {temp}/pid;\nerror_log stderr;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n\
             access_log off;\nclient_max_body_size 64m;\nkeepalive_requests {KEPT_FOR};\n\
             client_body_temp_path {temp};\nproxy_temp_path {temp};\nfastcgi_temp_path {temp};\n\
             uwsgi_temp_path {temp};\nscgi_temp_path {temp};\n\
             server {{\n\
             listen {HTTP_PORT} backlog=4096;\nlisten [::]:{HTTP_PORT} backlog=4096;\n\
             location / {{ default_type text/plain; return 200 '{name}\\n'; }}\n\
             location /{FROM_PATH} {{ default_type text/plain; return 200 '$remote_addr\\n'; }}\n\
             location /{BLOB_PATH} {{ root {root}; }}\n\
             }}\n\
             server {{\n\
             listen {PROXIED_PORT} proxy_protocol;\nlisten [::]:{PROXIED_PORT} proxy_protocol;\n\
             location / {{ default_type text/plain; return 200 '$proxy_protocol_addr\n'; }}\n\
             location /{BLOB_PATH} {{ root {root}; }}\n\
             }}\n}}\n",
            temp = temp.display(),
            root = directory.display(),
        ),
    )?;
    let mut command = namespace.command("nginx");
    // `-e`: otherwise it opens the distribution's log first.
    command.arg("-p").arg(directory).args(["-e", "stderr", "-c"]).arg(&path);
    serve(namespace, command, &format!("nginx of {name}"), HTTP_PORT, &directory.join("nginx.log"))
}

/// A DNS server that knows one name, [`DNS_NAME`]: its TXT record is the backend's name, its addresses the backend's.
///
/// # Errors
/// When it does not start, with what it wrote.
pub fn dnsmasq(namespace: &Namespace, number: u8, directory: &Path) -> Result<Process> {
    let name = backend_name(number);
    let addresses: Vec<IpAddr> = Family::BOTH.map(|family| family.backend(number)).to_vec();
    let mut command = namespace.command("dnsmasq");
    command
        .args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
            "--pid-file",
            "--log-facility=-",
        ])
        .args(["--no-resolv", "--no-hosts", &format!("--port={DNS_PORT}")])
        .arg(format!("--txt-record={DNS_NAME},{name}"))
        .args(addresses.iter().map(|addr| format!("--host-record={DNS_NAME},{addr}")));
    serve(namespace, command, &format!("dnsmasq of {name}"), DNS_PORT, &directory.join("dnsmasq.log"))
}

/// An FTP server for anonymous users, who find the file `name`: [`FTP_LINES`] times the backend's name. Not among [`Servers`].
///
/// # Errors
/// When it does not start, with what it wrote.
pub fn vsftpd(namespace: &Namespace, number: u8, directory: &Path) -> Result<Process> {
    let root = directory.join("ftp");
    let path = directory.join("vsftpd.conf");
    let empty = directory.join("empty");
    fs::create_dir_all(&root)?;
    fs::create_dir_all(&empty)?;
    fs::write(root.join("name"), format!("{}\n", backend_name(number)).repeat(FTP_LINES))?;
    fs::write(
        &path,
        format!(
            "listen=NO\nlisten_ipv6=YES\nbackground=NO\nanonymous_enable=YES\nno_anon_password=YES\nlocal_enable=NO\n\
             write_enable=NO\nconnect_from_port_20=YES\nport_enable=YES\npasv_enable=YES\nseccomp_sandbox=NO\n\
             xferlog_enable=NO\nanon_root={}\nsecure_chroot_dir={}\n",
            root.display(),
            empty.display()
        ),
    )?;
    let mut command = namespace.command("vsftpd");
    command.arg(&path);
    serve(
        namespace,
        command,
        &format!("vsftpd of {}", backend_name(number)),
        FTP_PORT,
        &directory.join("vsftpd.log"),
    )
}

/// An iperf3 server.
///
/// # Errors
/// When it does not start, with what it wrote.
pub fn iperf3(namespace: &Namespace, directory: &Path) -> Result<Process> {
    let mut command = namespace.command("iperf3");
    command.args(["--server", "--port", &IPERF_PORT.to_string()]);
    serve(namespace, command, "iperf3", IPERF_PORT, &directory.join("iperf3.log"))
}

fn serve(namespace: &Namespace, command: Command, name: &str, port: u16, log: &Path) -> Result<Process> {
    let mut server = Process::spawn(name, command, log.into())?;
    server.wait_until(START_LIMIT, || namespace.listens(port))?;
    Ok(server)
}
