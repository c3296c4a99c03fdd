//! A part of a log for a page. Each byte is looked at once for where lines and phases begin, which is remembered; a page reads its own part.
//! A search reads all.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_pages::ansi::{Line, Style};
use kiln_pages::job::{LOG_BYTES_SHOWN_MAX, LOG_LINES_MAX, Log, Phase};
use kiln_wire::{AttemptId, DrvPath};

use crate::logs::LogReader;

/// Which part of a log is wanted.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// From this byte on; none for the end.
    pub(super) at: Option<u64>,
    /// Lines with this alone.
    pub(super) search: String,
}

/// What is known of logs that were looked at lately.
#[derive(Default)]
pub(super) struct KnownLogs(Mutex<VecDeque<(LogKey, Arc<Mutex<Known>>)>>);

/// Which log, and whether it is written at present: what one coordinator has of it then may have gaps that the whole one has not.
pub(super) type LogKey = (DrvPath, AttemptId, bool);

impl KnownLogs {
    /// Returns what is known of a log: nothing at first.
    pub(super) fn of(&self, key: LogKey) -> Arc<Mutex<Known>> {
        let mut logs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = logs.iter().position(|(known, _)| *known == key).and_then(|at| logs.remove(at));
        let (key, known) = found.unwrap_or_else(|| (key, Arc::default()));
        logs.push_back((key, known.clone()));
        if logs.len() > LOGS_KNOWN_MAX {
            logs.pop_front();
        }
        known
    }
}

/// What is known of one log, as far as it was looked at.
#[derive(Default)]
pub(super) struct Known {
    scanned: u64,
    splitter: Splitter,
    /// Where some lines begin, and their numbers, the first line apart.
    marks: Vec<(u64, u64)>,
    phases: Vec<Phase>,
}

impl Known {
    /// Looks at what came since.
    fn scan(&mut self, reader: &mut LogReader) -> io::Result<()> {
        if reader.size_bytes()? < self.scanned {
            *self = Self::default();
        }
        reader.skip_to(self.scanned)?;
        loop {
            let chunk = reader.next_chunk()?;
            if chunk.is_empty() {
                return Ok(());
            }
            self.scanned += chunk.len() as u64;
            let (marks, phases) = (&mut self.marks, &mut self.phases);
            self.splitter.feed(&chunk, |number, at, line| {
                if at >= marks.last().map_or(0, |(at, _)| *at) + MARK_BYTES {
                    marks.push((at, number));
                }
                if let Some(name) = kiln_nix::phase::begun(line).filter(|_| phases.len() < PHASES_MAX) {
                    phases.push(Phase { name, line: number, at });
                }
            });
        }
    }

    /// Returns where a line begins at or before a place, not far from it if lines are short, and its number.
    fn before(&self, at: u64) -> (u64, u64) {
        let behind = self.marks.partition_point(|(mark, _)| *mark <= at);
        behind.checked_sub(1).map_or((0, 1), |last| self.marks[last])
    }
}

/// What is put together while a log is read.
struct Reading<'a> {
    wanted: &'a Wanted,
    /// What is searched for, in small letters.
    search: String,
    from: u64,
    lines: VecDeque<(u64, u64, Vec<u8>)>,
    bytes: usize,
    hits: u64,
    /// Where the first line behind a full page begins.
    later: Option<u64>,
}

/// Reads a part of a log. `is_live`: more will come.
///
/// # Errors
/// What the file system or the store says.
pub(super) fn read(reader: &mut LogReader, known: &mut Known, attempt: u64, wanted: &Wanted, is_live: bool) -> io::Result<Log> {
    known.scan(reader)?;
    let size_bytes = reader.size_bytes()?;
    let from = wanted.at.unwrap_or_else(|| size_bytes.saturating_sub(LOG_BYTES_SHOWN_MAX as u64));
    let search = wanted.search.to_lowercase();
    let (start, number) = if search.is_empty() { known.before(from) } else { (0, 1) };
    let mut reading = Reading { wanted, search, from, lines: VecDeque::new(), bytes: 0, hits: 0, later: None };
    let mut splitter = Splitter { start, number, ..Splitter::default() };
    reader.skip_to(start)?;
    while reading.later.is_none() {
        let chunk = reader.next_chunk()?;
        if chunk.is_empty() {
            break;
        }
        splitter.feed(&chunk, |number, at, line| reading.line(number, at, line));
    }
    // What is not ended by a line's end is shown once the log is complete: until then its rest is on the way.
    let rest = splitter.start;
    if !is_live && !splitter.line.is_empty() {
        reading.line(splitter.number, splitter.start, &splitter.line);
    }
    Ok(reading.log(attempt, size_bytes, known.phases.clone(), is_live.then_some((rest, splitter.number))))
}

/// Reads what came behind a place of a log, as much as a page shows.
///
/// # Errors
/// What the file system or the store says.
pub(super) fn read_on(reader: &mut LogReader, attempt: u64, at: u64, number: u64, style: Style, is_live: bool) -> io::Result<Log> {
    reader.skip_to(at)?;
    let mut style = style;
    let mut splitter = Splitter { start: at, number, ..Splitter::default() };
    let mut log = Log { attempt, is_live, size_bytes: reader.size_bytes()?, ..Log::default() };
    let (mut bytes, mut is_at_end, mut cut) = (0, false, None);
    // A line may be longer than a page: then its end is looked for, or it would be the last one for ever.
    while cut.is_none() && (bytes < LOG_BYTES_SHOWN_MAX || log.lines.is_empty()) {
        let chunk = reader.next_chunk()?;
        if chunk.is_empty() {
            is_at_end = true;
            break;
        }
        bytes += chunk.len();
        splitter.feed(&chunk, |number, at, line| {
            if log.lines.len() == LOG_LINES_MAX {
                cut.get_or_insert((at, number));
            } else {
                log.lines.push((number, Line::read(line, &mut style)));
            }
        });
    }
    if !is_live && is_at_end && cut.is_none() && !splitter.line.is_empty() {
        log.lines.push((splitter.number, Line::read(&splitter.line, &mut style)));
    }
    let (at, number) = cut.unwrap_or((splitter.start, splitter.number));
    log.next = (is_live || cut.is_some() || !is_at_end).then_some((at, number, style));
    Ok(log)
}

impl Reading<'_> {
    fn line(&mut self, number: u64, at: u64, line: &[u8]) {
        if !self.search.is_empty() {
            if text(line).to_lowercase().contains(&self.search) {
                self.hits += 1;
                if self.lines.len() < HITS_MAX {
                    self.lines.push_back((number, at, line.to_vec()));
                }
            }
            return;
        }
        if at < self.from || self.later.is_some() {
            return;
        }
        let is_full = self.lines.len() == LOG_LINES_MAX || self.bytes + line.len() > LOG_BYTES_SHOWN_MAX;
        if is_full && self.wanted.at.is_some() {
            self.later = Some(at);
            return;
        }
        self.lines.push_back((number, at, line.to_vec()));
        self.bytes += line.len();
        while self.lines.len() > LOG_LINES_MAX || self.bytes > LOG_BYTES_SHOWN_MAX {
            let Some((.., first)) = self.lines.pop_front() else { break };
            self.bytes -= first.len();
        }
    }

    fn log(self, attempt: u64, size_bytes: u64, phases: Vec<Phase>, next: Option<(u64, u64)>) -> Log {
        let mut style = Style::default();
        let is_searched = !self.wanted.search.is_empty();
        let first = self.lines.front().map_or(0, |(_, at, _)| *at);
        let lines = self.lines.iter().map(|(number, _, line)| (*number, Line::read(line, &mut style))).collect();
        let is_live = next.is_some();
        Log {
            attempt,
            size_bytes,
            is_live,
            lines,
            wanted: self.wanted.search.clone(),
            hits: self.hits,
            phases,
            earlier: (!is_searched && first > 0).then(|| first.saturating_sub(LOG_BYTES_SHOWN_MAX as u64)),
            later: self.later,
            next: next.filter(|_| !is_searched && self.later.is_none()).map(|(at, number)| (at, number, style)),
        }
    }
}

/// Splits bytes into lines, of which it keeps as much as is shown.
struct Splitter {
    line: Vec<u8>,
    /// Where the line begins.
    start: u64,
    number: u64,
    /// Bytes of the line so far, those included that are not kept.
    length: u64,
}

impl Default for Splitter {
    fn default() -> Self {
        Self { line: Vec::new(), start: 0, number: 1, length: 0 }
    }
}

impl Splitter {
    fn feed(&mut self, chunk: &[u8], mut line: impl FnMut(u64, u64, &[u8])) {
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = LINE_BYTES_MAX.saturating_sub(self.line.len());
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            self.length += piece.len() as u64;
            if text.len() < piece.len() {
                line(self.number, self.start, self.line.strip_suffix(b"\r").unwrap_or(&self.line));
                (self.start, self.number, self.length) = (self.start + self.length, self.number + 1, 0);
                self.line.clear();
            }
        }
    }
}

/// Returns a line as it is read: what turns colours on and off is no part of its words.
fn text(line: &[u8]) -> Cow<'_, str> {
    match line.contains(&0x1b) {
        true => Cow::Owned(Line::read(line, &mut Style::default()).text()),
        false => String::from_utf8_lossy(line),
    }
}

/// Lines that match and are shown.
const HITS_MAX: usize = 300;
/// Bytes of one line that are shown: longer ones are no text.
const LINE_BYTES_MAX: usize = 2048;
/// Logs of which is known where lines begin: with all their marks 1 MiB.
const LOGS_KNOWN_MAX: usize = 64;
/// Bytes between two places of which is known which line begins there.
const MARK_BYTES: u64 = 64 << 10;
/// Phases that are remembered of one log.
const PHASES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::Logs;

    fn check(text: &str, wanted: &Wanted, is_live: bool) -> Log {
        let dir = tempfile::tempdir().expect("temporary directory");
        let logs = Logs::open(dir.path()).expect("open");
        let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path");
        logs.put(&derivation, AttemptId(7), text.as_bytes()).expect("takes");
        let (mut known, mut reader) = (Known::default(), logs.read(&derivation, AttemptId(7)).expect("opens"));
        let once = read(&mut reader, &mut known, 7, wanted, is_live).expect("reads");
        assert_eq!(read(&mut reader, &mut known, 7, wanted, is_live).expect("reads"), once, "what is known of a log changes nothing");
        once
    }

    fn texts(log: &Log) -> Vec<(u64, String)> {
        log.lines.iter().map(|(number, line)| (*number, line.text())).collect()
    }

    fn numbered(lines: &[(u64, &str)]) -> Vec<(u64, String)> {
        lines.iter().map(|(number, line)| (*number, (*line).to_owned())).collect()
    }

    #[test]
    fn a_short_log_is_shown_whole_and_the_line_that_is_being_written_later() {
        let log = check("one\r\ntwo\nthr", &Wanted::default(), false);
        assert_eq!(texts(&log), numbered(&[(1, "one"), (2, "two"), (3, "thr")]));
        assert_eq!((log.earlier, log.later, log.next), (None, None, None));
        let live = check("one\r\ntwo\nthr", &Wanted::default(), true);
        assert_eq!(texts(&live), numbered(&[(1, "one"), (2, "two")]));
        assert_eq!(live.next, Some((9, 3, Style::default())));
    }

    #[test]
    fn a_long_log_is_shown_from_its_end_and_every_part_leads_to_its_neighbours() {
        let text: String = (1..=5000).map(|number| format!("line {number:05}\n")).collect();
        let end = check(&text, &Wanted::default(), false);
        assert_eq!(end.lines.len(), LOG_LINES_MAX);
        assert_eq!(texts(&end).last().map(|(number, text)| (*number, text.as_str())), Some((5000, "line 05000")));
        assert!(end.earlier.is_some() && end.later.is_none());
        let start = check(&text, &Wanted { at: Some(0), ..Wanted::default() }, false);
        assert_eq!((texts(&start)[0].0, start.lines.len(), start.earlier), (1, LOG_LINES_MAX, None));
        let next = check(&text, &Wanted { at: start.later, ..Wanted::default() }, false);
        assert_eq!(texts(&next)[0], (1001, "line 01001".to_owned()));
    }

    #[test]
    fn a_search_finds_lines_wherever_they_are_and_counts_all() {
        let text: String = (1..=4000).map(|number| if number % 10 == 0 { "an ERROR here\n" } else { "fine\n" }).collect();
        let found = check(&text, &Wanted { search: "error".to_owned(), at: None }, true);
        assert_eq!((found.hits, found.lines.len(), found.lines[1].0), (400, HITS_MAX, 20));
        assert_eq!(found.next, None, "a search does not grow");
    }

    #[test]
    fn phases_are_found_however_they_are_told() {
        let text = "Running phase: unpackPhase\nx\n@nix {\"action\":\"setPhase\",\"phase\":\"buildPhase\"}\nRunning phase: \nnot Running phase: y\n";
        let phases: Vec<_> =
            check(text, &Wanted::default(), false).phases.into_iter().map(|phase| (phase.name, phase.line, phase.at)).collect();
        assert_eq!(phases, [("unpackPhase".to_owned(), 1, 0), ("buildPhase".to_owned(), 3, 29)]);
    }

    #[test]
    fn a_log_goes_on_where_it_was_with_its_colours() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let logs = Logs::open(dir.path()).expect("open");
        let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path");
        let text = b"\x1b[31mred\nstill red\nand";
        logs.append(&derivation, AttemptId(7), 0, text).expect("append");
        let open = || logs.read(&derivation, AttemptId(7)).expect("opens");
        let first = read(&mut open(), &mut Known::default(), 7, &Wanted::default(), true).expect("reads");
        let (at, number, style) = first.next.expect("more will come");
        logs.append(&derivation, AttemptId(7), text.len() as u64, b" on\nnext").expect("append");
        let more = read_on(&mut open(), 7, at, number, style, true).expect("reads");
        assert_eq!(texts(&more), numbered(&[(3, "and on")]));
        assert_eq!(more.lines[0].1.runs[0].0, style, "the colour goes on");
        let (at, number, style) = more.next.expect("more will come");
        let last = read_on(&mut open(), 7, at, number, style, false).expect("reads");
        assert_eq!((texts(&last), last.next), (numbered(&[(4, "next")]), None));
    }

    #[test]
    fn a_line_without_an_end_is_cut() {
        let log = check(&"x".repeat(1 << 20), &Wanted { at: Some(0), ..Wanted::default() }, false);
        assert_eq!(texts(&log)[0].1.len(), LINE_BYTES_MAX);
    }

    #[test]
    fn a_line_has_its_number_wherever_reading_begins_and_whenever_it_was_written() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let logs = Logs::open(dir.path()).expect("open");
        let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path");
        let text: String = (1..=60_000).map(|number| format!("line {number:05}\n")).collect();
        let (mut known, mut written) = (Known::default(), 0);
        for end in [5, 70_000, 200_003, text.len()] {
            logs.append(&derivation, AttemptId(7), written as u64, &text.as_bytes()[written..end]).expect("append");
            written = end;
            let mut reader = logs.read(&derivation, AttemptId(7)).expect("opens");
            for at in [0, 1, 65_536, 130_000, 199_990, 659_000] {
                let log = read(&mut reader, &mut known, 7, &Wanted { at: Some(at), ..Wanted::default() }, true).expect("reads");
                assert!(texts(&log).iter().all(|(number, text)| *text == format!("line {number:05}")), "{end} {at}");
                let first = log.lines.first().map(|(number, _)| *number);
                assert_eq!(
                    first,
                    (at + 11 < end as u64).then_some(at.div_ceil(11) + 1).filter(|line| line * 11 <= end as u64),
                    "{end} {at}"
                );
            }
        }
        assert!(known.marks.len() > 9 && known.scanned == text.len() as u64);
    }

    #[test]
    fn what_grows_fast_comes_in_pages_and_a_line_without_an_end_stops_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let logs = Logs::open(dir.path()).expect("open");
        let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path");
        let text = format!("{}\nend\n{}", "x".repeat(300 << 10), "\n".repeat(2500));
        logs.append(&derivation, AttemptId(7), 0, text.as_bytes()).expect("append");
        let on = |at, number| {
            let mut reader = logs.read(&derivation, AttemptId(7)).expect("opens");
            read_on(&mut reader, 7, at, number, Style::default(), true).expect("reads")
        };
        let (mut at, mut number, mut lines) = (0, 1, 0);
        for _ in 0..9 {
            let log = on(at, number);
            assert!(log.lines.len() <= LOG_LINES_MAX && log.lines.iter().all(|(_, line)| line.text().len() <= LINE_BYTES_MAX));
            assert!(log.lines.iter().map(|(number, _)| *number).eq(number..number + log.lines.len() as u64));
            lines += log.lines.len();
            (at, number, _) = log.next.expect("more will come");
        }
        assert_eq!((at, lines), (text.len() as u64, 2502));
    }

    #[test]
    fn a_search_is_for_what_is_read_and_not_for_its_colours() {
        let text = "an \u{1b}[31mer\u{1b}[0mror\n31m\nFUER \u{c4}rger\n";
        for (search, hits) in [("error", 1), ("31m", 1), ("\u{e4}RGER", 1), ("none", 0)] {
            assert_eq!(check(text, &Wanted { search: search.to_owned(), at: None }, false).hits, hits, "{search}");
        }
    }

    #[test]
    fn few_logs_are_known_and_those_that_were_looked_at_last() {
        let logs = KnownLogs::default();
        let key = |attempt: usize| {
            let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path");
            (derivation, AttemptId(attempt as u64), false)
        };
        let first = logs.of(key(0));
        for attempt in 1..2 * LOGS_KNOWN_MAX {
            logs.of(key(attempt));
            assert!(Arc::ptr_eq(&first, &logs.of(key(0))));
        }
        assert_eq!(logs.0.lock().expect("no panic").len(), LOGS_KNOWN_MAX);
    }
}
