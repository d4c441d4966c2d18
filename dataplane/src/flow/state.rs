//! The states of all protocols' flows in one byte, with the numbers and names that IPVS gives them.

macro_rules! states {
    ($($(#[$doc:meta])* $variant:ident = $number:literal => $name:literal,)*) => {
        /// State of a flow. TCP has 0 to 10, with IPVS's numbers, UDP one of its own, SCTP IPVS's numbers from
        /// [`State::SctpNone`] on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(u8)]
        pub enum State {
            $($(#[$doc])* $variant = $number,)*
        }

        impl State {
            /// The name as `ipvsadm -c` prints it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

states! {
    /// TCP: nothing seen yet.
    #[default]
    None = 0 => "NONE",
    /// TCP: data flows.
    Established = 1 => "ESTABLISHED",
    /// TCP: the backend opens, the client has not answered.
    SynSent = 2 => "SYN_SENT",
    /// TCP: the client opens, the handshake is not complete.
    SynRecv = 3 => "SYN_RECV",
    /// TCP: the backend has closed its side.
    FinWait = 4 => "FIN_WAIT",
    /// TCP: both sides have closed.
    TimeWait = 5 => "TIME_WAIT",
    /// TCP: reset.
    Close = 6 => "CLOSE",
    /// TCP: the client has closed its side.
    CloseWait = 7 => "CLOSE_WAIT",
    /// TCP: the last acknowledgement is awaited. Only ever received from another balancer.
    LastAck = 8 => "LAST_ACK",
    /// TCP: only ever received from another balancer, or waiting for a connection that another one has announced.
    Listen = 9 => "LISTEN",
    /// TCP: the backend has answered under `secure_tcp`, the client not yet.
    SynAck = 10 => "SYNACK",
    /// UDP: its only state.
    Udp = 11 => "UDP",
    /// SCTP: nothing seen yet.
    SctpNone = 16 => "NONE",
    /// SCTP: the client's first INIT.
    SctpInit1 = 17 => "INIT1",
    /// SCTP: a further INIT of the client.
    SctpInit = 18 => "INIT",
    /// SCTP: the backend has answered with a cookie.
    SctpCookieSent = 19 => "C-SENT",
    /// SCTP: the client has given the cookie back.
    SctpCookieReplied = 20 => "C-REPLIED",
    /// SCTP: the backend opens and waits for a cookie.
    SctpCookieWait = 21 => "C-WAIT",
    /// SCTP: the client has answered the backend's INIT.
    SctpCookie = 22 => "COOKIE",
    /// SCTP: the backend has given the cookie back.
    SctpCookieEchoed = 23 => "C-ECHOED",
    /// SCTP: data flows.
    SctpEstablished = 24 => "ESTABLISHED",
    /// SCTP: the backend closes.
    SctpShutdownSent = 25 => "S-SENT",
    /// SCTP: the client closes.
    SctpShutdownReceived = 26 => "S-RECEIVED",
    /// SCTP: the backend has agreed to the end.
    SctpShutdownAckSent = 27 => "S-ACK-SENT",
    /// SCTP: refused by an ABORT.
    SctpRejected = 28 => "REJECTED",
    /// SCTP: over.
    SctpClosed = 29 => "CLOSED",
}

/// TCP's states.
pub(super) const TCP_STATES: usize = 11;
/// SCTP's states.
pub(super) const SCTP_STATES: usize = 14;
/// The number that SCTP's states start from.
pub(super) const SCTP_FIRST: u8 = State::SctpNone as u8;

impl State {
    /// TCP's states, by number.
    pub const TCP: [Self; TCP_STATES] = [
        Self::None,
        Self::Established,
        Self::SynSent,
        Self::SynRecv,
        Self::FinWait,
        Self::TimeWait,
        Self::Close,
        Self::CloseWait,
        Self::LastAck,
        Self::Listen,
        Self::SynAck,
    ];

    /// SCTP's states, by IPVS's number.
    pub const SCTP: [Self; SCTP_STATES] = [
        Self::SctpNone,
        Self::SctpInit1,
        Self::SctpInit,
        Self::SctpCookieSent,
        Self::SctpCookieReplied,
        Self::SctpCookieWait,
        Self::SctpCookie,
        Self::SctpCookieEchoed,
        Self::SctpEstablished,
        Self::SctpShutdownSent,
        Self::SctpShutdownReceived,
        Self::SctpShutdownAckSent,
        Self::SctpRejected,
        Self::SctpClosed,
    ];

    /// IPVS's number of the state within its protocol.
    #[inline]
    pub fn number(self) -> u8 {
        match self {
            Self::Udp => 0,
            other => (other as u8).checked_sub(SCTP_FIRST).unwrap_or(other as u8),
        }
    }

    /// Whether the flow counts as an active connection of its backend; all others are inactive.
    #[inline]
    pub fn is_active(self) -> bool {
        matches!(
            self,
            Self::Established | Self::SynSent | Self::SynRecv | Self::SynAck | Self::SctpEstablished
        )
    }

    /// Whether its handshake is not complete: such flows go first when there is no room.
    #[inline]
    pub fn is_half_open(self) -> bool {
        matches!(self, Self::SynSent | Self::SynRecv | Self::SynAck | Self::SctpInit1 | Self::SctpInit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_ipvss() {
        for (number, state) in State::TCP.into_iter().enumerate() {
            assert_eq!((state as usize, state.number() as usize), (number, number));
        }
        for (number, state) in State::SCTP.into_iter().enumerate() {
            assert_eq!(state.number() as usize, number);
        }
        assert_eq!(State::Udp.number(), 0);
    }

    #[test]
    fn active_is_what_ipvs_counts_as_active() {
        assert_eq!(State::TCP.map(State::is_active).map(u8::from), [0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1]);
        let active: Vec<_> = State::SCTP.into_iter().filter(|state| state.is_active()).collect();
        assert_eq!(active, [State::SctpEstablished]);
        assert!(!State::Udp.is_active());
    }
}
