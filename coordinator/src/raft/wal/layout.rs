//! The bytes of a segment: a header, a seal, then records.
//!
//! Goals: an old byte, a byte of another file and a flipped byte never read as a record; a torn tail is told from damage.
//! Non-goals: meaning of payloads (see `record`), compression.
//!
//! ```text
//! 0    header (64)  magic 8 | version 4 | crc 4 | log id 8 | segment number 8 | first seq 8 | head end 8 | size 8 | zero 8
//! 64   seal (64)    zero while the segment grows; then  magic 8 | crc 4 | zero 4 | last seq 8 | zero 40
//! 128  record       length 4 | crc 4 | seq 8 | durable 8 | index 8 | kind 1 | version 1 | zero 6 | payload | zero to 8
//! ```
//! Integers are little endian. Every checksum is CRC-32C and starts from the log's id and the segment's number (its epoch), so
//! nothing written elsewhere or earlier is valid. `seq` numbers the records of the whole log. `durable` is the highest `seq` that
//! was known to be on the disk when the record was written: a record that claims a bad one before it to be durable proves
//! damage, while a torn batch never does.

/// Bytes before the first record.
pub const RECORDS_AT: u64 = 128;
/// Bytes of a record before its payload.
pub const RECORD_HEADER_BYTES: usize = 40;
/// Bytes of a segment's header, and of its seal.
pub const BLOCK_BYTES: usize = 64;
/// The format's version. A golden file pins what version 1 is.
pub const FORMAT_VERSION: u32 = 1;

const HEADER_MAGIC: [u8; 8] = *b"KILNWAL\0";
const SEAL_MAGIC: [u8; 8] = *b"KILNSEAL";

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A log entry.
    Entry,
    /// The node's vote.
    Vote,
    /// Entries after a position are void.
    Truncate,
    /// Entries up to a position are dropped.
    Purge,
    /// Entries up to a position are committed.
    Committed,
}

impl Kind {
    fn to_byte(self) -> u8 {
        match self {
            Self::Entry => 1,
            Self::Vote => 2,
            Self::Truncate => 3,
            Self::Purge => 4,
            Self::Committed => 5,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Entry, Self::Vote, Self::Truncate, Self::Purge, Self::Committed].into_iter().find(|kind| kind.to_byte() == byte)
    }
}

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Drawn once per log, so that segments of different logs never mix.
    pub log_id: u64,
    /// The segment's number, never used twice in a log: the epoch of its checksums.
    pub number: u64,
    /// `seq` of the first record.
    pub first_seq: u64,
    /// `seq` of the last record that was durable before the segment got its name.
    pub head_end: u64,
    /// Bytes of the file.
    pub size_bytes: u64,
}

impl Header {
    /// Returns the header's bytes.
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        block[..8].copy_from_slice(&HEADER_MAGIC);
        block[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        for (i, field) in [self.log_id, self.number, self.first_seq, self.head_end, self.size_bytes].into_iter().enumerate() {
            block[16 + 8 * i..24 + 8 * i].copy_from_slice(&field.to_le_bytes());
        }
        let crc = crc32c::crc32c(&block);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// Reads a header; the error says what is wrong.
    pub fn decode(block: &[u8; BLOCK_BYTES]) -> Result<Self, &'static str> {
        let mut unsummed = *block;
        unsummed[12..16].fill(0);
        if block[..8] != HEADER_MAGIC {
            return Err("the header does not start as a log segment's");
        }
        if crc32c::crc32c(&unsummed).to_le_bytes() != block[12..16] {
            return Err("the header's checksum does not match");
        }
        if u32_at(block, 8) != FORMAT_VERSION {
            return Err("the segment was written in a format that this version does not know");
        }
        let header = Self {
            log_id: u64_at(block, 16),
            number: u64_at(block, 24),
            first_seq: u64_at(block, 32),
            head_end: u64_at(block, 40),
            size_bytes: u64_at(block, 48),
        };
        if header.size_bytes < RECORDS_AT { Err("the header states an impossible size") } else { Ok(header) }
    }

    fn seed(&self) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.log_id.to_le_bytes()), &self.number.to_le_bytes())
    }
}

/// Returns the bytes of a seal: the segment is complete and ends with `last_seq`.
pub fn encode_seal(header: &Header, last_seq: u64) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    block[..8].copy_from_slice(&SEAL_MAGIC);
    block[16..24].copy_from_slice(&last_seq.to_le_bytes());
    let crc = crc32c::crc32c_append(header.seed(), &block);
    block[8..12].copy_from_slice(&crc.to_le_bytes());
    block
}

/// Reads a seal: `None` if the segment still grows, else its last `seq`. The error says what is wrong.
pub fn decode_seal(header: &Header, block: &[u8; BLOCK_BYTES]) -> Result<Option<u64>, &'static str> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let last_seq = u64_at(block, 16);
    if *block == encode_seal(header, last_seq) { Ok(Some(last_seq)) } else { Err("the segment's seal is damaged") }
}

/// What a record says, beside its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// Number of the record in the log.
    pub seq: u64,
    /// Highest `seq` known durable when this one was written.
    pub durable: u64,
    /// Log index of an entry, or of the last purged one; otherwise 0.
    pub index: u64,
    /// What it is about.
    pub kind: Kind,
    /// Version of the payload's encoding.
    pub version: u8,
}

/// Bytes that a record with such a payload takes.
pub fn record_bytes(payload_bytes: usize) -> usize {
    (RECORD_HEADER_BYTES + payload_bytes).next_multiple_of(8)
}

/// Appends a record to `out`.
pub fn encode_record(header: &Header, head: &RecordHead, payload: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    let size = u32::try_from(payload.len()).expect("the writer limits payloads to far less than 4 GiB");
    out.extend_from_slice(&size.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&head.seq.to_le_bytes());
    out.extend_from_slice(&head.durable.to_le_bytes());
    out.extend_from_slice(&head.index.to_le_bytes());
    out.extend_from_slice(&[head.kind.to_byte(), head.version, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(payload);
    let crc = record_crc(header, &out[start..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + record_bytes(payload.len()), 0);
}

/// What lies at some offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A valid record, and the bytes that it takes.
    Record(RecordHead, &'a [u8], usize),
    /// Zeros, or too few bytes for a record: the end of what was written.
    Blank,
    /// Neither; says what is wrong.
    Bad(&'static str),
}

/// Reads what lies at the start of `bytes`, which go to the end of the segment.
pub fn decode_record<'a>(header: &Header, bytes: &'a [u8]) -> Found<'a> {
    let Some(head) = bytes.get(..RECORD_HEADER_BYTES) else {
        return if bytes.iter().all(|byte| *byte == 0) { Found::Blank } else { Found::Bad("bytes behind the last record") };
    };
    if head.iter().all(|byte| *byte == 0) {
        return Found::Blank;
    }
    let payload_bytes = usize::try_from(u32_at(head, 0)).unwrap_or(usize::MAX);
    if payload_bytes > bytes.len() - RECORD_HEADER_BYTES {
        return Found::Bad("the record's length goes beyond the segment");
    }
    let end = RECORD_HEADER_BYTES + payload_bytes;
    if record_crc(header, &bytes[..end]) != u32_at(head, 4) {
        return Found::Bad("the record's checksum does not match");
    }
    let Some(kind) = Kind::from_byte(head[32]) else {
        return Found::Bad("the record's kind is unknown: it was written by a newer version");
    };
    let size = record_bytes(payload_bytes).min(bytes.len());
    if bytes[end..size].iter().any(|byte| *byte != 0) {
        return Found::Bad("the record's padding is not zero");
    }
    let head = RecordHead { seq: u64_at(head, 8), durable: u64_at(head, 16), index: u64_at(head, 24), kind, version: head[33] };
    Found::Record(head, &bytes[RECORD_HEADER_BYTES..end], size)
}

/// Returns the offset of a valid record behind the start of `bytes` that claims record `seq` to be durable, if there is one.
/// Records are aligned to 8 bytes, and the first fields are checked before the checksum, so that zeros are passed quickly.
pub fn find_proof(header: &Header, bytes: &[u8], seq: u64) -> Option<usize> {
    (8..bytes.len().saturating_sub(RECORD_HEADER_BYTES)).step_by(8).find(|at| {
        let (later_seq, durable) = (u64_at(bytes, at + 8), u64_at(bytes, at + 16));
        later_seq > durable && durable >= seq && matches!(decode_record(header, &bytes[*at..]), Found::Record(..))
    })
}

/// The sum covers everything of a record but its own place and the padding, which must be zero.
fn record_crc(header: &Header, record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(header.seed(), &record[..4]), &record[8..])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
