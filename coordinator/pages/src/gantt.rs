//! What ran where, as a drawing: a lane for each worker, a bar for each attempt. Bars that are too short to be seen are drawn as one.

use kiln_wire::Timestamp;
use maud::{Markup, html};

use crate::paint;
use crate::timeline::{Lane, Span, Timeline};
use crate::words;

/// A bar: one attempt, or several in the place of which it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bar<'a> {
    first: &'a Span,
    count: u64,
    left: u64,
    right: u64,
    is_critical: bool,
}

/// Rows of bars that do not overlap.
struct Rows<'a> {
    lane: &'a Lane,
    rows: Vec<Vec<Bar<'a>>>,
}

/// Returns the drawing.
pub(crate) fn draw(model: &Timeline) -> Markup {
    let mut lanes: Vec<Rows<'_>> = model.lanes.iter().map(|lane| rows(model, lane)).collect();
    let mut least = 1;
    while bars(&lanes) > BARS_MAX && least < WIDTH - LEFT {
        least *= 2;
        lanes.iter_mut().for_each(|lane| lane.merge(least));
    }
    let height = TOP + lanes.iter().map(Rows::height).sum::<u64>() + 6;
    let tops = lanes.iter().scan(TOP, |next, lane| Some(std::mem::replace(next, *next + lane.height())));
    let tops: Vec<u64> = tops.collect();
    html! {
        div class="drawbox" id="gantt-box" tabindex="0" role="group" aria-label="Timeline of attempts" {
            svg class="gantt" viewBox={ "0 0 " (WIDTH) " " (height) } role="group" aria-label="Attempts by worker and time" data-from=(model.from.0) data-to=(model.to.0) data-left=(LEFT) {
                (axis(model, height))
                @for (lane, y) in lanes.iter().zip(tops) { (draw_lane(model, lane, y)) }
                @if model.now >= model.from && model.now <= model.to {
                    @let x = place(model, model.now);
                    line class="now" x1=(x) x2=(x) y1=(TOP - 4) y2=(height - 4) { title { "now" } }
                }
            }
        }
    }
}

fn bars(lanes: &[Rows<'_>]) -> usize {
    lanes.iter().flat_map(|lane| &lane.rows).map(Vec::len).sum()
}

impl<'a> Rows<'a> {
    fn height(&self) -> u64 {
        u64::try_from(self.rows.len().max(1)).unwrap_or(1) * ROW + 6
    }

    /// Joins neighbours that are shorter than `least` and as near to each other.
    fn merge(&mut self, least: u64) {
        for row in &mut self.rows {
            let mut merged: Vec<Bar<'a>> = Vec::with_capacity(row.len());
            for bar in row.drain(..) {
                match merged.last_mut() {
                    Some(last) if bar.left <= last.right + least && (last.is_short(least) || last.count > 1) && bar.is_short(least) => {
                        last.right = last.right.max(bar.right);
                        last.count += bar.count;
                        last.is_critical |= bar.is_critical;
                    }
                    Some(_) | None => merged.push(bar),
                }
            }
            *row = merged;
        }
    }
}

impl Bar<'_> {
    fn is_short(&self, least: u64) -> bool {
        self.right - self.left <= least * 2
    }
}

/// Puts each attempt into the first row that is free when it starts.
fn rows<'a>(model: &Timeline, lane: &'a Lane) -> Rows<'a> {
    let mut spans: Vec<&Span> = lane.spans.iter().filter(|span| span.from <= model.to && span.until(model.now) >= model.from).collect();
    spans.sort_by_key(|span| (span.from, span.attempt));
    let mut rows: Vec<Vec<Bar<'a>>> = Vec::new();
    let mut free_at: Vec<Timestamp> = Vec::new();
    for span in spans {
        let (left, until) = (place(model, span.from), span.until(model.now));
        let bar = Bar { first: span, count: 1, left, right: place(model, until).max(left + 1), is_critical: span.is_critical };
        match free_at.iter().position(|at| *at <= span.from) {
            Some(row) => {
                rows[row].push(bar);
                free_at[row] = until;
            }
            None if rows.len() < ROWS_MAX => {
                rows.push(vec![bar]);
                free_at.push(until);
            }
            // More at a time than are drawn: the last row has the rest on top of each other.
            None => rows[ROWS_MAX - 1].push(bar),
        }
    }
    Rows { lane, rows }
}

fn place(model: &Timeline, at: Timestamp) -> u64 {
    let whole = model.to.since_ms(model.from).max(1);
    let part = at.min(model.to).since_ms(model.from);
    LEFT + u64::try_from(u128::from(part) * u128::from(WIDTH - LEFT) / u128::from(whole)).unwrap_or(WIDTH - LEFT)
}

fn axis(model: &Timeline, height: u64) -> Markup {
    let whole = model.to.since_ms(model.from).max(1);
    let step = STEPS_MS.into_iter().find(|step| whole / step <= 10).unwrap_or(whole);
    let first = model.from.0.div_ceil(step).saturating_mul(step);
    let ticks = (0..12).map_while(|tick: u64| first.checked_add(tick * step)).map(Timestamp).take_while(|at| *at <= model.to);
    html! {
        @for at in ticks {
            @let x = place(model, at);
            line class="axis" x1=(x) x2=(x) y1="18" y2=(height - 4) {}
            text class="soft" x=(x) y="12" text-anchor=(if x + 40 > WIDTH { "end" } else { "middle" }) { (tick(at, step)) }
        }
    }
}

fn tick(at: Timestamp, step: u64) -> String {
    let moment = words::moment(at);
    match step {
        0..60_000 => moment[11..].to_owned(),
        60_000..86_400_000 => moment[11..16].to_owned(),
        _ => moment[5..10].to_owned(),
    }
}

fn draw_lane(model: &Timeline, rows: &Rows<'_>, y: u64) -> Markup {
    let lane = rows.lane;
    html! {
        g {
            a href={ "/ui/fleet#w-" (lane.worker) } { text x="0" y=(y + 13) { (paint::cut(lane.worker.as_str(), LABEL_CHARS)) title { (lane.worker) } } }
            rect class="lane" x=(LEFT) y=(y) width=(WIDTH - LEFT) height=(rows.height() - 6) {}
            @for (at, row) in rows.rows.iter().enumerate() {
                @for bar in row { (draw_bar(model, bar, y + u64::try_from(at).unwrap_or_default() * ROW)) }
            }
        }
    }
}

fn draw_bar(model: &Timeline, bar: &Bar<'_>, y: u64) -> Markup {
    let (span, width) = (bar.first, bar.right - bar.left);
    let class = format!("hit f-{}{}", span.end.tone().class(), if bar.is_critical { " crit" } else { "" });
    if bar.count > 1 {
        return html! {
            rect class=(class) x=(bar.left) y=(y + 1) width=(width) height=(ROW - 2) { title { (words::counted(bar.count, "attempt", "attempts")) "; zoom in to see them apart" } }
        };
    }
    let name = paint::short(&span.derivation);
    let until = span.until(model.now);
    let critical = if bar.is_critical { ", critical path" } else { "" };
    let says = format!(
        "{name}: {}, {} from {}{critical}",
        span.end.word(),
        words::duration(until.since_ms(span.from)),
        words::clock(model.now, span.from)
    );
    html! {
        a href=(paint::job_href(&span.derivation)) aria-label=(says) {
            rect class=(class) x=(bar.left) y=(y + 1) width=(width) height=(ROW - 2) rx="2" { title { (says) } }
            @if width > 46 { text class="on" x=(bar.left + 4) y=(y + 13) { (paint::cut(name, usize::try_from(width / 8).unwrap_or(8))) } }
        }
    }
}

const WIDTH: u64 = 1200;
const LEFT: u64 = 130;
const TOP: u64 = 24;
const ROW: u64 = 18;
const LABEL_CHARS: usize = 18;
/// Attempts that a worker is drawn with at a time.
const ROWS_MAX: usize = 24;
/// Bars of a page: each takes about 250 bytes of it, of the 300 KiB that it may have.
const BARS_MAX: usize = 700;
/// Between two lines of the axis, the first that leaves ten of them.
const STEPS_MS: [u64; 15] = [
    1_000, 5_000, 15_000, 30_000, 60_000, 120_000, 300_000, 900_000, 1_800_000, 3_600_000, 7_200_000, 14_400_000, 21_600_000, 43_200_000,
    86_400_000,
];
