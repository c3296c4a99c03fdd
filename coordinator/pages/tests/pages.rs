//! Every page of the fixtures: well-formed, escaped, within its size, and readable without a script.

mod fixtures;

use std::collections::BTreeSet;

use fixtures::{HOSTILE, drv, pages, shell, timeline_model};
use kiln_pages::ansi::{Line, Style};
use kiln_pages::build::{Graph, JobList, JobRow, Node};
use kiln_pages::{JobState, Viewer, build, cluster, fleet, job, timeline};

/// What an attribute or a text may hold of a page, before anything is unescaped.
fn attributes<'a>(page: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let needle = format!(" {name}=\"");
    page.match_indices(&needle)
        .map(|(at, _)| at + needle.len())
        .collect::<Vec<_>>()
        .into_iter()
        .filter_map(|at| page[at..].split('"').next())
}

/// The opening and closing tags of a page, in order.
fn tags(page: &str) -> Vec<&str> {
    page.split('<').skip(1).filter_map(|rest| rest.split('>').next()).collect()
}

#[test]
fn every_page_is_well_formed_and_has_one_heading_and_a_place_to_skip_to() {
    let void = ["meta", "link", "input", "img", "!DOCTYPE"];
    for (name, document) in pages() {
        let page = document.page(&shell());
        let mut open = Vec::new();
        for tag in tags(&page) {
            let word = tag.split(' ').next().unwrap_or_default();
            match word.strip_prefix('/') {
                Some(closed) => assert_eq!(open.pop(), Some(closed), "{name}: </{closed}> closes something else"),
                None if void.contains(&word) || tag.ends_with('/') => {}
                None => open.push(word),
            }
        }
        assert_eq!(open, Vec::<&str>::new(), "{name}: left open");
        assert_eq!(page.matches("<h1").count(), 1, "{name}");
        assert!(page.contains("href=\"#main\"") && page.contains("<main id=\"main\""), "{name}");
        assert!(page.contains("<html lang=\"en\">") && page.contains("width=device-width"), "{name}");
        let levels: Vec<u8> = page
            .match_indices("<h")
            .filter_map(|(at, _)| page.as_bytes().get(at + 2))
            .filter(|level| level.is_ascii_digit())
            .map(|level| level - b'0')
            .collect();
        assert!(levels.windows(2).all(|pair| pair[1] <= pair[0] + 1), "{name}: headings skip a level: {levels:?}");
    }
}

#[test]
fn every_id_is_unique_and_everything_that_names_one_finds_it() {
    for (name, document) in pages() {
        let page = document.page(&shell());
        let ids: Vec<&str> = attributes(&page, "id").collect();
        let unique: BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(ids.len(), unique.len(), "{name}: an id stands twice");
        let named = attributes(&page, "aria-labelledby").chain(attributes(&page, "for")).map(str::to_owned);
        let linked = attributes(&page, "href").filter_map(|href| href.strip_prefix('#')).map(str::to_owned);
        for id in named.chain(linked) {
            assert!(unique.contains(id.as_str()), "{name}: there is no #{id}");
        }
    }
}

#[test]
fn what_builders_and_clients_write_is_text() {
    let mut seen = 0;
    for (name, document) in pages() {
        for page in [document.page(&shell()), document.part(&shell())] {
            assert!(!page.contains("<script>") && !page.contains("<img src=x"), "{name}");
            assert!(!page.contains('\u{202e}'), "{name}: text is turned around");
            seen += page.matches("&lt;script&gt;alert(1)").count();
        }
    }
    assert!(seen > 10, "the fixtures have hostile text in {seen} places");
}

#[test]
fn no_page_has_an_inline_script_a_style_or_anything_from_elsewhere() {
    for (name, document) in pages() {
        let page = document.page(&shell());
        assert_eq!(page.matches("<script").count(), 1, "{name}");
        assert!(!page.contains(" style=\"") && !page.contains("<style"), "{name}");
        for tag in tags(&page) {
            assert!(!tag.contains(" onclick=\"") && !tag.contains(" onload=\"") && !tag.contains(" onerror=\""), "{name}: {tag}");
        }
        for href in attributes(&page, "href").chain(attributes(&page, "src")).chain(attributes(&page, "action")) {
            assert!(href.starts_with(['/', '#', '?']) && !href.starts_with("//"), "{name}: {href}");
        }
    }
}

#[test]
fn states_are_said_in_words_and_drawings_have_names() {
    for (name, document) in pages() {
        let page = document.page(&shell());
        for (at, _) in page.match_indices("class=\"state ") {
            let inner = page[at..].split("</span>").next().unwrap_or_default();
            let words = inner.rsplit('>').next().unwrap_or_default();
            assert!(words.chars().any(char::is_alphanumeric), "{name}: a state without a word: {inner}");
        }
        for tag in tags(&page).into_iter().filter(|tag| tag.starts_with("svg")) {
            assert!(
                tag.contains("aria-hidden=\"true\"") || tag.contains("aria-label=") || tag.starts_with("svg class=\"i\" x="),
                "{name}: {tag}"
            );
        }
    }
}

#[test]
fn a_build_of_60_000_jobs_has_a_first_page_below_300_kib() {
    let mut model = fixtures::build_model();
    let row = |at: usize| JobRow {
        derivation: drv(&format!("a-package-with-a-rather-long-name-of-its-own-{at}-1.2.3")),
        state: JobState::ALL[at % 7],
        reason: format!("waits for 17 inputs, {} among them, {HOSTILE}{HOSTILE}{HOSTILE}", drv("llvm-21.1.7")),
        chain_ms: 7_000_000,
        attempts: 3,
        attributes: vec![format!("legacyPackages.x86_64-linux.a-package-with-a-rather-long-name-{at}"); 8],
    };
    model.jobs = Some(JobList { rows: (0..build::ROWS_MAX).map(row).collect(), next: Some("x".to_owned()), ..JobList::default() });
    let node = |at: usize| Node {
        derivation: drv(&format!("some-package-{at}")),
        state: JobState::Blocked,
        is_critical: at.is_multiple_of(5),
        inputs: (0..at).rev().take(4).collect(),
    };
    model.graph = Some(Graph { nodes: (0..build::NODES_MAX).map(node).collect(), left_out: 59_900 });
    model.failures = (0..build::FAILURES_MAX).map(|_| model.failures[3].clone()).collect();
    let bytes = build::page(&model).page(&shell()).len();
    assert!(bytes <= 300 << 10, "{bytes} bytes");
}

#[test]
fn a_timeline_of_many_attempts_joins_what_nobody_could_tell_apart() {
    let few = timeline::page(&timeline_model(14)).page(&shell());
    assert!(!few.contains("zoom in to see them apart"));
    let many = timeline::page(&timeline_model(20_000)).page(&shell());
    assert!(many.len() <= 300 << 10, "{} bytes", many.len());
    assert!(many.contains("attempts; zoom in to see them apart"));
}

#[test]
fn a_long_log_line_by_line_stays_below_300_kib() {
    let mut model = fixtures::job_model();
    let mut log = fixtures::log_model();
    let lines = job::LOG_LINES_MAX;
    let length = job::LOG_BYTES_SHOWN_MAX / lines;
    log.lines = (1..=lines)
        .map(|number| (u64::try_from(number).unwrap_or_default(), Line::read("x".repeat(length).as_bytes(), &mut Style::default())))
        .collect();
    model.log = Some(log);
    let bytes = job::page(&model).page(&shell()).len();
    assert!(bytes <= 300 << 10, "{bytes} bytes");
}

#[test]
fn only_an_administrator_sees_what_changes_the_farm() {
    let model = fixtures::fleet_model();
    let reader = Viewer { name: Some("rita".to_owned()), ..Viewer::default() };
    let (theirs, ours) = (fleet::page(&model, &reader).part(&shell()), fleet::page(&model, &shell().viewer).part(&shell()));
    assert!(!theirs.contains("<form") && !theirs.contains("Drain"));
    assert_eq!(ours.matches("action=\"/ui/fleet/drain\"").count(), model.workers.len());
    // Who is kept from work can be given it back; who works can be kept from it.
    let change = |worker: &str| {
        ours.split(&format!("name=\"worker\" value=\"{worker}\"")).nth(1).and_then(|rest| rest.split('"').nth(5)).map(str::to_owned)
    };
    assert_eq!(
        (change("ax102-7").as_deref(), change("ax102-4").as_deref(), change("ax102-1").as_deref()),
        (Some("no"), Some("no"), Some("yes"))
    );
}

#[test]
fn links_between_pages_carry_any_name_a_client_can_choose() {
    let page = build::page(&fixtures::build_model()).part(&shell());
    assert!(page.contains("?q=a%22b&amp;state=running&amp;after=100%26x#jobs"), "the search goes on with what was searched for");
    let odd = JobRow {
        derivation: drv("odd?name=+1"),
        state: JobState::Ready,
        reason: String::new(),
        chain_ms: 0,
        attempts: 0,
        attributes: Vec::new(),
    };
    let list = JobList { rows: vec![odd], ..JobList::default() };
    let page = build::page(&kiln_pages::build::Build { jobs: Some(list), ..fixtures::build_model() }).part(&shell());
    assert!(page.contains("-odd%3Fname=+1.drv\""), "a question mark would begin a query");
}

#[test]
fn a_build_shows_what_its_jobs_are_called_and_what_does_not_evaluate() {
    let page = build::page(&fixtures::build_model()).part(&shell());
    for wanted in ["Not evaluated", "3 attributes", "pkgs.broken", "undefined variable", "Attributes not built, newly: 1", ">pkgs."] {
        assert!(page.contains(wanted), "{wanted}: {page}");
    }
    assert!(!page.contains("Attributes built again"), "there is none");
    let all = kiln_pages::build::Build { errors: Vec::new(), errors_more: 0, ..fixtures::build_model() };
    assert!(!build::page(&all).part(&shell()).contains("Not evaluated"));
}

#[test]
fn the_cluster_shows_how_receivers_do_and_what_is_kept() {
    let page = cluster::page(&fixtures::cluster_model()).part(&shell());
    for wanted in
        ["Webhooks", "mail.example.org:8443", "it answered with status 500", "takes what it is sent", "the last 10 builds of each name"]
    {
        assert!(page.contains(wanted), "{wanted}: {page}");
    }
    let nobody = kiln_pages::cluster::Cluster { receivers: Vec::new(), ..fixtures::cluster_model() };
    assert!(!cluster::page(&nobody).part(&shell()).contains("Webhooks"));
}
