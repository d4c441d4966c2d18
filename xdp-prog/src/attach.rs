//! Attaching the program to an interface and reading back how the kernel runs it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::{fmt, io};

use libbpf_rs::libbpf_sys::{XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE};
use libbpf_rs::{Program, XdpFlags};

use crate::error::AttachError;
use crate::link;

/// Who runs the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The driver, before the kernel makes a packet buffer.
    Native,
    /// The kernel's stack, after it has made one: any interface, but slow.
    Generic,
    /// The network card. Weir never asks for it; another program may sit there.
    Offloaded,
}

impl Mode {
    /// The name as configuration and output have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offloaded => "offloaded",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The program on one interface. The kernel takes it off when this is dropped.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) port: u8,
    pub(crate) ifindex: u32,
    _link: OwnedFd,
}

impl Attachment {
    /// Attaches natively or, if that cannot be and `allow_generic` says so, generically.
    pub(crate) fn new(
        program: BorrowedFd<'_>,
        port: u8,
        ifindex: u32,
        allow_generic: bool,
    ) -> Result<Self, AttachError> {
        let index = i32::try_from(ifindex).map_err(|_| AttachError::NoInterface(ifindex))?;
        if let Some((program, mode)) = attached(program, ifindex)?.first() {
            return Err(AttachError::Occupied { program: *program, mode: *mode });
        }
        let link = match link::create(program, index, XDP_FLAGS_DRV_MODE) {
            Err(source) if allow_generic && is_drivers_refusal(&source) => {
                tracing::info!(ifindex, %source, "no native XDP, taking generic mode");
                link::create(program, index, XDP_FLAGS_SKB_MODE).map_err(|source| (Mode::Generic, source))
            }
            other => other.map_err(|source| (Mode::Native, source)),
        };
        match link {
            Ok(link) => Ok(Self { port, ifindex, _link: link }),
            Err((mode, source)) => Err(explain(program, ifindex, mode, source)),
        }
    }

    /// How the kernel runs the program at this moment, by its own account.
    pub(crate) fn mode(&self, program: BorrowedFd<'_>) -> Result<Mode, AttachError> {
        let own = Program::id_from_fd(program).map_err(AttachError::Query)?;
        let all = attached(program, self.ifindex)?;
        all.into_iter().find(|(id, _)| *id == own).map(|(_, mode)| mode).ok_or(AttachError::Gone)
    }
}

/// The ids of the programs that are attached to the interface, each with its mode.
fn attached(program: BorrowedFd<'_>, ifindex: u32) -> Result<Vec<(u32, Mode)>, AttachError> {
    let index = i32::try_from(ifindex).map_err(|_| AttachError::NoInterface(ifindex))?;
    let state = libbpf_rs::Xdp::new(program).query(index, XdpFlags::NONE).map_err(|error| {
        // libbpf finds no answer about the interface in the kernel's reply.
        if error.kind() == libbpf_rs::ErrorKind::NotFound || is_no_device(&error) {
            AttachError::NoInterface(ifindex)
        } else {
            AttachError::Query(error)
        }
    })?;
    let slots = [
        (state.drv_prog_id, Mode::Native),
        (state.skb_prog_id, Mode::Generic),
        (state.hw_prog_id, Mode::Offloaded),
    ];
    Ok(slots.into_iter().filter(|(id, _)| *id != 0).collect())
}

fn is_no_device(error: &libbpf_rs::Error) -> bool {
    error.to_string() == io::Error::from_raw_os_error(libc::ENODEV).to_string()
}

/// Whether the driver said no, to which generic mode is an answer; not so a missing interface or privilege.
fn is_drivers_refusal(error: &io::Error) -> bool {
    !matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EACCES | libc::EBUSY | libc::EEXIST | libc::ENODEV)
    )
}

fn explain(program: BorrowedFd<'_>, ifindex: u32, mode: Mode, source: io::Error) -> AttachError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => AttachError::Permission { source },
        // Somebody attached a program since it was looked for.
        Some(libc::EBUSY | libc::EEXIST) => match attached(program, ifindex) {
            Ok(others) => match others.first() {
                Some((program, mode)) => AttachError::Occupied { program: *program, mode: *mode },
                None => AttachError::Kernel { mode, source },
            },
            Err(error) => error,
        },
        Some(libc::ENODEV) => AttachError::NoInterface(ifindex),
        Some(libc::EOPNOTSUPP) if mode == Mode::Native => AttachError::NoNative { source },
        Some(libc::EINVAL | libc::ENOSPC | libc::ERANGE) if mode == Mode::Native => {
            AttachError::Settings { source }
        }
        _ => AttachError::Kernel { mode, source },
    }
}
