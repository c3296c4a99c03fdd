//! Prometheus' text format, version 0.0.4: families, each with its help and type before its samples.
//!
//! Source: Prometheus, Exposition formats, "Text-based format".

use std::fmt::{Display, Write};

/// A page that is being written.
#[derive(Default)]
pub(super) struct Page {
    pub(super) text: String,
}

/// A label and its value.
type Label<'a> = (&'a str, &'a str);

impl Page {
    /// Begins a family: its samples follow.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// Writes a gauge that has one sample.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    /// Writes a counter that has one sample.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }

    /// Writes a family with a sample for each value of a label.
    pub(super) fn by<'a, V: Display>(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        label: &str,
        of: impl IntoIterator<Item = (&'a str, V)>,
    ) {
        self.family(name, kind, help);
        of.into_iter().for_each(|(value, count)| self.sample(name, &[(label, value)], count));
    }

    /// Writes a sample of the family that was begun last.
    pub(super) fn sample(&mut self, name: &str, labels: &[Label<'_>], value: impl Display) {
        let labels = braced(labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))));
        self.line(format_args!("{name}{labels} {value}"));
    }

    /// Writes what a histogram of the family that was begun last counted: below each bound, a number of seconds, and beyond the last.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        labels: &[Label<'_>],
        bounds: impl Iterator<Item = String>,
        buckets: &[u64],
        sum: impl Display,
    ) {
        let (mut below, bucket) = (0, format!("{name}_bucket"));
        for (bound, count) in bounds.zip(buckets) {
            below += count;
            self.sample(&bucket, &[labels, &[("le", bound.as_str())]].concat(), below);
        }
        let count: u64 = buckets.iter().sum();
        self.sample(&bucket, &[labels, &[("le", "+Inf")]].concat(), count);
        self.sample(&format!("{name}_sum"), labels, sum);
        self.sample(&format!("{name}_count"), labels, count);
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a String takes any text");
    }
}

fn braced(labels: impl Iterator<Item = String>) -> String {
    let labels = labels.collect::<Vec<_>>().join(",");
    if labels.is_empty() { labels } else { format!("{{{labels}}}") }
}

/// Writes a label's value as the format has it: it may be of whoever submits.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Writes microseconds as seconds.
pub(super) fn of_us(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

/// Writes milliseconds as seconds.
pub(super) fn of_ms(ms: u64) -> String {
    format!("{}.{:03}", ms / 1_000, ms % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_leave_its_quotes() {
        let mut page = Page::default();
        page.sample("x", &[("system", "a\"} 7\n\\"), ("more", "")], 1);
        assert_eq!(page.text, "x{system=\"a\\\"} 7\\n\\\\\",more=\"\"} 1\n");
    }

    #[test]
    fn a_histogram_counts_what_is_below_each_bound() {
        let mut page = Page::default();
        page.histogram("x_seconds", &[("system", "s")], [100, 2_000].map(of_ms).into_iter(), &[3, 0, 1], of_ms(4_250));
        let expected = "x_seconds_bucket{system=\"s\",le=\"0.100\"} 3\nx_seconds_bucket{system=\"s\",le=\"2.000\"} 3\n\
             x_seconds_bucket{system=\"s\",le=\"+Inf\"} 4\nx_seconds_sum{system=\"s\"} 4.250\nx_seconds_count{system=\"s\"} 4\n";
        assert_eq!(page.text, expected);
    }
}
