//! An HTTPS server, and what every source shares: resumption, digests, sentences.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Instant;

use crate::program::{Fetch, PATIENCE, eventually, model, sha256};
use crate::proxy::{Break, Proxy};
use crate::servers::{PASSWORD, Server, USER};

const SIZE: usize = 4 << 20;
/// A connection's own bytes, its TLS records included, beside those of the file.
const OVERHEAD: u64 = 64 << 10;

fn uri(server: &Server, path: &str) -> String {
    format!("https://{}{path}", server.address)
}

#[test]
fn cut_transfers_go_on_where_they_were() {
    let model = model(SIZE);
    let server = Server::nginx(&[("a.onnx", &model)]);
    let proxy = Proxy::start(server.address, vec![Break::Cut(1 << 20), Break::Cut(2 << 20)]);
    let fetch = Fetch::new(&format!("https://{}/models/a.onnx", proxy.address), &server.authority);
    fetch.sha256(&sha256(&model)).brings(&model);
    let asked = server.log("access.log");
    let offsets: Vec<u64> = asked
        .lines()
        .map(|line| line.split_once("bytes=").map_or(0, |(_, range)| range.trim_end_matches('-').parse().unwrap()))
        .collect();
    assert_eq!(offsets.len(), 3, "{asked}");
    assert!(offsets[0] == 0 && offsets[1] > 900_000 && offsets[2] > 2_900_000, "{asked}");
    let down = proxy.down();
    println!("{SIZE} bytes in {} connections: {down} came down", proxy.connections());
    assert!(down < SIZE as u64 + 3 * OVERHEAD, "{down} bytes: some came twice");
}

#[test]
fn next_process_goes_on_where_a_killed_one_was() {
    let model = model(SIZE);
    let server = Server::nginx(&[("a.onnx", &model)]);
    let proxy = Proxy::start(server.address, vec![Break::Hold(3 << 20)]);
    let fetch = Fetch::new(&format!("https://{}/models/a.onnx", proxy.address), &server.authority);
    let fetch = fetch.sha256(&sha256(&model));
    let mut killed = fetch.start();
    eventually("two megabytes", || fs::metadata(fetch.part()).is_ok_and(|part| part.len() > 2 << 20));
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(!fetch.model().exists());
    fetch.brings(&model);
    assert!(proxy.down() < SIZE as u64 + 2 * OVERHEAD + (1 << 20), "{} bytes", proxy.down());
    let before = proxy.connections();
    fetch.brings(&model);
    assert_eq!(proxy.connections(), before, "a model that is here is not fetched again");
}

#[test]
fn signal_ends_a_transfer_at_once() {
    let server = Server::nginx(&[("a.onnx", &model(SIZE))]);
    let proxy = Proxy::start(server.address, vec![Break::Hold(1 << 20)]);
    let fetch = Fetch::new(&format!("https://{}/models/a.onnx", proxy.address), &server.authority);
    let fetch = fetch.sha256(&"0".repeat(64));
    let child = fetch.start();
    eventually("a byte", || fs::metadata(fetch.part()).is_ok_and(|part| part.len() > 0));
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let start = Instant::now();
    let ended = fetch.end(child);
    assert!(!ended.success && start.elapsed() < PATIENCE / 4, "{ended:?}");
    assert_eq!(ended.code, "", "nobody has to act on it");
}

#[test]
fn server_without_ranges_is_asked_from_the_start() {
    let model = model(SIZE);
    let server = Server::nginx(&[("a.onnx", &model)]);
    let proxy = Proxy::start(server.address, vec![Break::Cut(1 << 20)]);
    let fetch = Fetch::new(&format!("https://{}/no-ranges/a.onnx", proxy.address), &server.authority);
    fetch.sha256(&sha256(&model)).brings(&model);
}

#[test]
fn bytes_of_another_file_are_thrown_away() {
    let model = model(SIZE);
    let server = Server::nginx(&[("a.onnx", &model)]);
    for left in [1000, SIZE + 1000] {
        let fetch = Fetch::new(&uri(&server, "/models/a.onnx"), &server.authority).sha256(&sha256(&model));
        fs::write(fetch.part(), vec![7; left]).unwrap();
        fetch.brings(&model);
    }
}

/// A fetch of a file that another one replaces once a megabyte of it has come.
fn replaced_half_way(old: &[u8], new: Vec<u8>) -> (Server, Fetch) {
    let server = Server::nginx(&[("a.onnx", old)]);
    let (current, beside) = (server.served("a.onnx"), server.served("new"));
    let proxy = Proxy::start_with(server.address, vec![Break::Cut(1 << 20)], move |connection| {
        if connection == 1 {
            fs::write(&beside, &new).unwrap();
            fs::rename(&beside, &current).unwrap();
        }
    });
    let fetch = Fetch::new(&format!("https://{}/models/a.onnx", proxy.address), &server.authority);
    (server, fetch)
}

#[test]
fn file_that_is_replaced_half_way_comes_whole_or_not_at_all() {
    let old = model(SIZE);
    // Shorter than what has come of the old one, and as long, and longer.
    for len in [1 << 19, SIZE, SIZE + 1000] {
        let new: Vec<u8> = old.iter().map(|byte| !byte).cycle().take(len).collect();
        let (server, fetch) = replaced_half_way(&old, new.clone());
        fetch.sha256(&sha256(&new)).brings(&new);
        let asked = server.log("access.log");
        assert!(asked.contains("bytes=") && asked.lines().count() > 2, "{asked}");
        let (_server, fetch) = replaced_half_way(&old, new.clone());
        let fetch = fetch.sha256(&sha256(&old));
        fetch.fails("model_digest_mismatch", &[&sha256(&old), &sha256(&new)]);
        assert!(!fetch.part().exists() && !fetch.model().exists(), "pieces of two files are no model");
    }
}

#[test]
fn another_file_than_asked_for_gets_no_name_and_both_digests_are_told() {
    let model = model(1000);
    let server = Server::nginx(&[("a.onnx", &model)]);
    let expected = "0123456789abcdef".repeat(4);
    let fetch = Fetch::new(&uri(&server, "/models/a.onnx"), &server.authority).sha256(&expected);
    fetch.fails("model_digest_mismatch", &[&uri(&server, "/models/a.onnx"), &expected, &sha256(&model)]);
    assert!(!fetch.part().exists(), "nothing of it is gone on with");
}

#[test]
fn file_that_is_not_there_is_missing() {
    let server = Server::nginx(&[]);
    let fetch =
        Fetch::new(&uri(&server, "/models/absent.onnx?token=5ec2e7"), &server.authority).sha256(&"0".repeat(64));
    let ended = fetch.fails("model_missing", &["/models/absent.onnx", "404"]);
    assert!(!ended.message.contains("5ec2e7") && !ended.log.contains("5ec2e7"), "{ended:#?}");
}

#[test]
fn server_that_asks_for_credentials_gets_those_of_the_environment_and_they_stay_secret() {
    let model = model(1000);
    let server = Server::nginx(&[("a.onnx", &model)]);
    let fetch = || Fetch::new(&uri(&server, "/private/a.onnx"), &server.authority).sha256(&sha256(&model));
    fetch().env("HTTP_USERNAME", USER).env("HTTP_PASSWORD", PASSWORD).brings(&model);
    fetch().fails("model_fetch_failed", &["401", "credentials"]);
    let wrong = fetch().env("HTTP_USERNAME", USER).env("HTTP_PASSWORD", "guessed");
    let ended = wrong.fails("model_fetch_failed", &["401"]);
    assert!(!ended.message.contains("guessed") && !ended.log.contains("guessed"), "{ended:#?}");
}

#[test]
fn server_that_is_not_trusted_or_not_there_is_told_as_that() {
    let server = Server::nginx(&[("a.onnx", &model(1000))]);
    let foreign = Server::nginx(&[]);
    let fetch = |uri: &str| Fetch::new(uri, &foreign.authority).sha256(&"0".repeat(64)).flag("--tries=2");
    fetch(&uri(&server, "/models/a.onnx")).fails("model_fetch_failed", &["certificate"]);
    let nobody = "https://127.0.0.1:1/a.onnx";
    let first = fetch(nobody).fails("model_fetch_failed", &[nobody, "refused"]);
    let again = fetch(nobody).fails("model_fetch_failed", &[nobody]);
    assert_eq!(first.message, again.message, "a message that changes from try to try would never rest in a status");
}

#[test]
fn full_disk_is_told() {
    let model = model(SIZE);
    let server = Server::nginx(&[("a.onnx", &model)]);
    let fetch = Fetch::new(&uri(&server, "/models/a.onnx"), &server.authority).sha256(&sha256(&model));
    symlink("/dev/full", fetch.part()).unwrap();
    fetch.fails("model_fetch_failed", &["model.onnx", "No space left"]);
}

#[test]
fn model_without_a_known_content_is_refused() {
    let server = Server::nginx(&[("a.onnx", &model(1000))]);
    Fetch::new(&uri(&server, "/models/a.onnx"), &server.authority).fails("model_unsupported", &["SHA-256"]);
}
