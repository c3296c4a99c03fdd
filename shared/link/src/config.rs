//! Every number of the transport, with its reason. Figures were measured on loopback with quinn 0.11.12 unless said otherwise.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::Protocol;

/// The protocol of workers and clients. A peer without it, or with an unknown one, is refused in the handshake.
pub const ALPN: &[u8] = b"kiln/1";

/// The protocol of coordinators among themselves, on the same port. Nobody else may speak it.
pub const RAFT_ALPN: &[u8] = b"kiln-raft/1";

/// Nothing heard for this long: the peer counts as gone. Short, because a worker's silence is judged after 15 s.
pub const IDLE_MAX: Duration = Duration::from_secs(8);

/// Round trip that a coordinator expects of another before it has measured one: a lost first packet is sent again after three of
/// these, and an election must not wait for the 333 ms that suit the open Internet. A longer trip costs one more packet.
pub const RAFT_ROUND_TRIP: Duration = Duration::from_millis(30);

/// How often a quiet dialer says that it lives, if it does not speak anyway, as a worker in its session does (`HEARTBEAT_MS` is shorter). What is
/// lost on the way is sent again, several times before [`IDLE_MAX`] is over. Only dialers do; 1,000 of them cost a listener about one per cent
/// of a core.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// From the first packet to a usable connection. A handshake costs about a millisecond, so this only has to outlast lost packets.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// Streams a peer may have open at a time, in each direction of opening. State is kept for each permitted stream:
/// 100 cost 39 KiB a connection, 4,096 cost 236 KiB.
pub const STREAMS_MAX: u32 = 256;

/// Bytes a peer may send on one stream before we read: 100 Mbit/s over 160 ms. Larger ones made loss worse.
pub const STREAM_WINDOW_BYTES: u32 = 2 << 20;

/// Bytes a peer may send on one connection before we read. Quinn's own default is no bound; with this, 1,000 workers that
/// all upload to a coordinator that does not read hold 8 GiB at the very most.
pub const RECEIVE_WINDOW_BYTES: u32 = 8 << 20;

/// Bytes we keep for one peer that does not acknowledge.
pub const SEND_WINDOW_BYTES: u64 = 8 << 20;

/// Socket buffers asked for. The system's 208 KiB lose 0.3 to 0.5 % of packets at full speed, these about none.
pub const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Connections a listener holds. The design's fleet is 1,000 workers; each costs about 40 KiB. Further ones are refused.
pub const CONNECTIONS_MAX: usize = 8192;

/// Handshakes a listener carries out at a time; it refuses further dialers, who try again.
pub const HANDSHAKES_MAX: usize = 512;

/// From this many handshakes on, dialers must first prove their address (Retry), so that forged addresses cost us nothing.
pub const HANDSHAKES_WITHOUT_RETRY_MAX: usize = 64;

/// Dialers waiting to be looked at; a listener looks at them at once, so this is only a burst of packets.
pub const INCOMING_MAX: usize = 1024;

/// Bytes kept for one dialer that is not looked at yet. Early data is off, so nothing but its handshake belongs there.
pub const INCOMING_BYTES_MAX: u64 = 16 << 10;

/// Bytes kept for all of them.
pub const INCOMING_TOTAL_BYTES_MAX: u64 = 4 << 20;

/// Accepted connections that the session layer has not taken yet. When full, handshakes wait and dialers are refused.
pub const ACCEPT_BACKLOG: usize = 64;

/// Least time between two stateless resets. Quinn's 20 ms would tell only 50 of 1,000 workers a second that we restarted.
pub const RESET_INTERVAL_MIN: Duration = Duration::from_micros(100);

/// Datagram size between two ends on the same machine: 2.7 times the throughput of 1,452. Ten of them must stay below 64 KiB,
/// because that is how many go to the kernel at once.
pub const LOOPBACK_DATAGRAM_BYTES: u16 = 6400;

/// Longest time a blob's transfer may stand still. Generous, because the other side may wait for its disk.
pub const BLOB_STALL_MAX: Duration = Duration::from_secs(60);

/// Which end of a connection a configuration is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The end that was dialled.
    Listener,
    /// The end that dialled.
    Dialer,
}

/// Returns the transport's settings for a connection with `remote`.
pub(crate) fn transport(end: End, protocol: Protocol, remote: SocketAddr) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_MAX).expect("seconds fit QUIC's milliseconds")))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None)
        .allow_spin(false);
    match end {
        // The one stream that a listener opens by itself says that it has accepted the dialer.
        End::Dialer => transport.max_concurrent_uni_streams(VarInt::from_u32(1)).keep_alive_interval(Some(KEEP_ALIVE)),
        End::Listener => transport.max_concurrent_uni_streams(VarInt::from_u32(0)),
    };
    match protocol {
        Protocol::Farm => {}
        Protocol::Raft => {
            transport.initial_rtt(RAFT_ROUND_TRIP);
        }
    }
    if remote.ip().to_canonical().is_loopback() {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(LOOPBACK_DATAGRAM_BYTES);
        transport.initial_mtu(LOOPBACK_DATAGRAM_BYTES).mtu_discovery_config(Some(discovery));
    }
    Arc::new(transport)
}
