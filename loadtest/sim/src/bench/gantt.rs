//! A replay as a picture: a row for each slot, a bar for each job, the chain that made it as long as it is, and how busy the fleet was.
//!
//! Writes SVG with nothing outside it. Bars too narrow to be seen are drawn together as one pale bar.

use std::fmt::Write;

use super::bounds::Bounds;
use super::engine::{Run, Span};
use super::fleet::Fleet;
use super::workload::{JobNo, Kind, Workload};

/// What the picture says above its bars.
pub(crate) struct Caption {
    pub title: String,
    pub policy: String,
}

/// Draws a replay.
pub(crate) fn gantt(load: &Workload, fleet: &Fleet, run: &Run, bounds: &Bounds, caption: &Caption) -> String {
    let rows = rows(fleet, run);
    let chain = chain(load, run);
    let row_px = (ROWS_PX / rows.len().max(1) as f64).clamp(1.6, 18.0);
    let page = Page { run, ms_max: run.makespan_ms.max(bounds.window_ms).max(1), row_px, rows_px: row_px * rows.len() as f64 };
    let mut svg = String::new();
    page.open(&mut svg, load, fleet, bounds, caption);
    page.axis(&mut svg);
    for (at, row) in rows.iter().enumerate() {
        page.row(&mut svg, load, at, row, &chain);
    }
    page.labels(&mut svg, load, &rows, &chain);
    page.bound(&mut svg, bounds);
    page.load(&mut svg, fleet);
    page.legend(&mut svg);
    svg.push_str("</svg>\n");
    svg
}

const WIDTH_PX: f64 = 1500.0;
const LEFT_PX: f64 = 64.0;
const RIGHT_PX: f64 = 28.0;
const TOP_PX: f64 = 104.0;
/// Height of all rows, if there are many.
const ROWS_PX: f64 = 640.0;
const LOAD_PX: f64 = 110.0;
const GAP_PX: f64 = 44.0;
/// A narrower bar is drawn with its neighbours.
const BAR_PX_MIN: f64 = 1.1;
const CHAIN: &str = "#d6336c";
const SHORT: &str = "#d5dbe3";

struct Page<'a> {
    run: &'a Run,
    ms_max: u64,
    row_px: f64,
    rows_px: f64,
}

impl Page<'_> {
    fn x(&self, ms: u64) -> f64 {
        LEFT_PX + (WIDTH_PX - LEFT_PX - RIGHT_PX) * ms as f64 / self.ms_max as f64
    }

    fn y(&self, row: usize) -> f64 {
        TOP_PX + self.row_px * row as f64
    }

    fn open(&self, svg: &mut String, load: &Workload, fleet: &Fleet, bounds: &Bounds, caption: &Caption) {
        let height = TOP_PX + self.rows_px + GAP_PX + LOAD_PX + 64.0;
        let font = "Inter, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif";
        let _ = write!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH_PX} {height:.0}\" width=\"{WIDTH_PX}\" \
             height=\"{height:.0}\" font-family=\"{font}\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
        );
        let efficiency = bounds.window_ms as f64 / self.run.makespan_ms.max(1) as f64 * 100.0;
        text(svg, LEFT_PX, 38.0, 22.0, "#1b2430", "start", 600, &caption.title);
        let jobs = format!("{} jobs on {} slots of {} workers", load.tasks.len(), fleet.slots(), fleet.workers.len());
        text(svg, LEFT_PX, 62.0, 14.0, "#5b6675", "start", 400, &format!("{} · {jobs}", caption.policy));
        let right = WIDTH_PX - RIGHT_PX;
        let figures = format!("{} · {efficiency:.1} % of the bound", hours(self.run.makespan_ms));
        text(svg, right, 38.0, 22.0, "#1b2430", "end", 600, &figures);
        let of =
            format!("longest path {} · work {} · window bound {}", hours(bounds.path_ms), hours(bounds.work_ms), hours(bounds.window_ms));
        text(svg, right, 62.0, 14.0, "#5b6675", "end", 400, &of);
    }

    fn axis(&self, svg: &mut String) {
        let bottom = TOP_PX + self.rows_px + GAP_PX + LOAD_PX;
        let tick_ms = TICKS_MS.iter().copied().find(|tick| self.ms_max / tick <= 16).unwrap_or(86_400_000);
        for at in 0..=self.ms_max / tick_ms {
            let x = self.x(at * tick_ms);
            let _ = writeln!(svg, "<path d=\"M{x:.1} {:.1}V{bottom:.1}\" stroke=\"#edf0f4\"/>", TOP_PX - 6.0);
            text(svg, x, bottom + 18.0, 12.0, "#7b8694", "middle", 400, &clock(at * tick_ms));
        }
    }

    fn row(&self, svg: &mut String, load: &Workload, at: usize, spans: &[Span], chain: &[bool]) {
        let (y, height) = (self.y(at) + 0.1 * self.row_px, 0.8 * self.row_px);
        // Short jobs so far: where they begin and end, and for how long one of them ran.
        let mut short: Option<(u64, u64, u64)> = None;
        for span in spans {
            let (from, to) = (self.x(span.start_ms), self.x(span.end_ms));
            if to - from < BAR_PX_MIN && !chain[span.job.at()] {
                let lasted = span.end_ms - span.start_ms;
                short = match short {
                    Some((first, last, busy)) if from - self.x(last) < BAR_PX_MIN => Some((first, span.end_ms, busy + lasted)),
                    other => {
                        self.short(svg, other, y, height);
                        Some((span.start_ms, span.end_ms, lasted))
                    }
                };
                continue;
            }
            self.short(svg, short.take(), y, height);
            let task = load.task(span.job);
            let fill = if chain[span.job.at()] { CHAIN } else { colour(task.kind, task.name()) };
            let (width, radius) = ((to - from).max(0.6), if height > 5.0 && to - from > 6.0 { 2.0 } else { 0.0 });
            let title = format!("{} · {} to {}", task.name(), clock(span.start_ms), clock(span.end_ms));
            let _ = writeln!(
                svg,
                "<rect x=\"{from:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"{radius}\" fill=\"{fill}\"><title>{}</title></rect>",
                escaped(&title)
            );
        }
        self.short(svg, short, y, height);
    }

    fn short(&self, svg: &mut String, short: Option<(u64, u64, u64)>, y: f64, height: f64) {
        let Some((first, last, busy)) = short else { return };
        let opacity = 0.35 + 0.65 * busy as f64 / (last - first).max(1) as f64;
        let (x, width) = (self.x(first), (self.x(last) - self.x(first)).max(0.4));
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{SHORT}\" opacity=\"{opacity:.2}\"/>"
        );
    }

    /// Writes names on bars that have room for them.
    fn labels(&self, svg: &mut String, load: &Workload, rows: &[Vec<Span>], chain: &[bool]) {
        if self.row_px < 9.0 {
            return;
        }
        let size = (self.row_px * 0.62).min(11.0);
        for (at, row) in rows.iter().enumerate() {
            for span in row {
                let (name, room) = (load.task(span.job).name(), self.x(span.end_ms) - self.x(span.start_ms) - 8.0);
                if name.len() as f64 * size * 0.58 < room {
                    let ink = if chain[span.job.at()] || load.task(span.job).kind == Kind::Giant { "#ffffff" } else { "#1b2430" };
                    text(svg, self.x(span.start_ms) + 4.0, self.y(at) + self.row_px * 0.5 + size * 0.36, size, ink, "start", 400, name);
                }
            }
        }
    }

    fn bound(&self, svg: &mut String, bounds: &Bounds) {
        let (x, top, bottom) = (self.x(bounds.window_ms), TOP_PX - 10.0, TOP_PX + self.rows_px + GAP_PX + LOAD_PX);
        let _ =
            writeln!(svg, "<path d=\"M{x:.1} {top:.1}V{bottom:.1}\" stroke=\"#1b2430\" stroke-width=\"1.2\" stroke-dasharray=\"5 4\"/>");
        text(svg, x - 5.0, top - 2.0, 12.0, "#1b2430", "end", 500, "no schedule ends before this");
    }

    /// Draws how many slots are busy, and how many jobs wait for one, over time.
    fn load(&self, svg: &mut String, fleet: &Fleet) {
        let (top, bottom) = (TOP_PX + self.rows_px + GAP_PX, TOP_PX + self.rows_px + GAP_PX + LOAD_PX);
        let busy = mean_counts(self.run, self.ms_max, |span| (span.start_ms, span.end_ms));
        let waiting = mean_counts(self.run, self.ms_max, |span| (span.ready_ms, span.start_ms));
        let waiting_max = waiting.iter().copied().fold(1.0, f64::max);
        let line = |counts: &[f64], whole: f64| {
            let point = |(at, count): (usize, &f64)| {
                let x = LEFT_PX + (WIDTH_PX - LEFT_PX - RIGHT_PX) * (at as f64 + 0.5) / counts.len() as f64;
                format!("{x:.1} {:.1}", bottom - LOAD_PX * (count / whole).min(1.0))
            };
            counts.iter().enumerate().map(point).collect::<Vec<_>>().join("L")
        };
        let right = WIDTH_PX - RIGHT_PX;
        let (area, over) = (line(&busy, fleet.slots() as f64), line(&waiting, waiting_max));
        let _ = writeln!(svg, "<path d=\"M{LEFT_PX} {bottom:.1}L{area}L{right:.1} {bottom:.1}Z\" fill=\"#a5d8c4\"/>");
        let _ = writeln!(svg, "<path d=\"M{over}\" fill=\"none\" stroke=\"#e08a1e\" stroke-width=\"1.5\"/>");
        let _ = writeln!(svg, "<path d=\"M{LEFT_PX} {bottom:.1}H{right:.1}\" stroke=\"#c3cad4\"/>");
        text(svg, LEFT_PX - 8.0, top + 10.0, 12.0, "#2f7d62", "end", 500, &format!("{}", fleet.slots()));
        text(svg, LEFT_PX - 8.0, top + 26.0, 11.0, "#2f7d62", "end", 400, "busy");
        text(svg, LEFT_PX - 8.0, bottom - 18.0, 12.0, "#b36a10", "end", 500, &format!("{waiting_max:.0}"));
        text(svg, LEFT_PX - 8.0, bottom - 2.0, 11.0, "#b36a10", "end", 400, "wait");
    }

    fn legend(&self, svg: &mut String) {
        let y = TOP_PX + self.rows_px + GAP_PX + LOAD_PX + 44.0;
        let entries = [
            (CHAIN, "the chain that made it this long"),
            (colour(Kind::Giant, ""), "big-parallel"),
            (ORDINARY[0], "builds, a colour for each package"),
            (colour(Kind::Fetch, ""), "fetches"),
            (SHORT, "many short jobs"),
            ("#a5d8c4", "busy slots"),
            ("#e08a1e", "ready jobs that wait (its own scale)"),
        ];
        let mut x = LEFT_PX;
        for (fill, words) in entries {
            let _ = writeln!(svg, "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" rx=\"2\" fill=\"{fill}\"/>", y - 10.0);
            text(svg, x + 18.0, y, 12.0, "#5b6675", "start", 400, words);
            x += 42.0 + words.len() as f64 * 6.4;
        }
    }
}

const TICKS_MS: [u64; 12] =
    [1_000, 5_000, 15_000, 60_000, 300_000, 900_000, 1_800_000, 3_600_000, 7_200_000, 14_400_000, 21_600_000, 43_200_000];

/// Builds get one of these by their package's name.
const ORDINARY: [&str; 6] = ["#4c8bf5", "#6ea8fe", "#3b6fd1", "#7fb2d9", "#5a9bd8", "#8fb8ff"];

fn colour(kind: Kind, name: &str) -> &'static str {
    match kind {
        Kind::Fetch => "#9aa8b8",
        Kind::Text => SHORT,
        Kind::Giant => "#5f3dc4",
        Kind::Ordinary => {
            let (package, _) = super::draws::split_name(name);
            ORDINARY[package.bytes().fold(0, |sum, byte| (sum * 31 + usize::from(byte)) % 6007) % ORDINARY.len()]
        }
    }
}

/// Returns the jobs of each slot, first one first. Slots of a worker are told apart by taking the one that is free longest.
fn rows(fleet: &Fleet, run: &Run) -> Vec<Vec<Span>> {
    let mut first = Vec::new();
    let mut rows: Vec<Vec<Span>> = Vec::new();
    for worker in &fleet.workers {
        first.push(rows.len());
        rows.resize(rows.len() + worker.offer.slots as usize, Vec::new());
    }
    let mut spans = run.spans.clone();
    spans.sort_by_key(|span| (span.start_ms, span.end_ms, span.job));
    for span in spans {
        let slots = first[span.worker.at()]..first[span.worker.at()] + fleet.workers[span.worker.at()].offer.slots as usize;
        let until = |row: &usize| rows[*row].last().map_or(0, |last| last.end_ms);
        if let Some(row) = slots.min_by_key(until) {
            rows[row].push(span);
        }
    }
    rows
}

/// Returns which jobs are on the chain that ended last: each began when the one before it ended, an input or what held its slot.
fn chain(load: &Workload, run: &Run) -> Vec<bool> {
    let mut on = vec![false; run.spans.len()];
    let mut at = run.spans.iter().max_by_key(|span| (span.end_ms, span.job)).map(|span| span.job);
    while let Some(job) = at {
        on[job.at()] = true;
        let span = &run.spans[job.at()];
        let inputs = load.task(job).inputs.iter().copied().max_by_key(|input| run.spans[input.at()].end_ms);
        at = if span.start_ms > span.ready_ms { before(run, span).or(inputs) } else { inputs };
        at = at.filter(|next| !on[next.at()]);
    }
    on
}

/// Returns the job that ended on the same worker when this one began.
fn before(run: &Run, span: &Span) -> Option<JobNo> {
    let held = |other: &&Span| other.worker == span.worker && other.end_ms == span.start_ms && other.job != span.job;
    run.spans.iter().find(held).map(|other| other.job)
}

/// Returns how many intervals cover a moment, as a mean over each of 600 parts of the time.
fn mean_counts(run: &Run, ms_max: u64, interval: impl Fn(&Span) -> (u64, u64)) -> Vec<f64> {
    const PARTS: usize = 600;
    let part_ms = ms_max as f64 / PARTS as f64;
    let mut counts = vec![0.0; PARTS];
    for span in &run.spans {
        let (from, to) = interval(span);
        let (from, to) = (from as f64 / part_ms, to as f64 / part_ms);
        for (at, count) in counts.iter_mut().enumerate().take((to.ceil() as usize).min(PARTS)).skip(from as usize) {
            *count += (to.min(at as f64 + 1.0) - from.max(at as f64)).max(0.0);
        }
    }
    counts
}

#[expect(clippy::too_many_arguments, reason = "an element of text has as many attributes")]
fn text(svg: &mut String, x: f64, y: f64, size: f64, fill: &str, anchor: &str, weight: u32, words: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size:.1}\" fill=\"{fill}\" text-anchor=\"{anchor}\" font-weight=\"{weight}\">{}</text>",
        escaped(words)
    );
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Returns a time in hours, or in what is readable of it.
pub(crate) fn hours(ms: u64) -> String {
    match ms {
        0..60_000 => format!("{:.1} s", ms as f64 / 1e3),
        60_000..3_600_000 => format!("{:.1} min", ms as f64 / 6e4),
        3_600_000.. => format!("{:.2} h", ms as f64 / 3.6e6),
    }
}

fn clock(ms: u64) -> String {
    let seconds = ms / 1000;
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
