//! The event of a leak as machines read it: by its schema, and back again.

use sysops_agent::model::event::FdLeak;
use sysops_agent::model::{Detail, Event, Frame, Source};

#[test]
fn the_event_of_a_leak_is_as_its_schema_says_and_can_be_read_back() {
    let named = Frame {
        function: Some("connect_backend".to_owned()),
        module: Some("/usr/bin/proxy".to_owned()),
        offset: 0x11a0,
        file: Some("proxy.c".to_owned()),
        line: Some(42),
        image: None,
    };
    let leak = FdLeak {
        descriptor: "socket".to_owned(),
        count: 149,
        oldest_seconds: 31.2,
        growth_per_hour: 16_987.8,
        open: 314,
        limit: Some(20_000),
        attributed: 149,
        coverage: 0.475,
        frames: vec![named, Frame { offset: 0x7f00_1234, ..Frame::default() }],
    };
    let event = Event {
        schema: Event::SCHEMA,
        time: "2026-02-22T16:30:00.000000000Z".to_owned(),
        source: vec![Source::Fentry],
        pid: Some(42),
        tid: None,
        comm: Some("proxy".to_owned()),
        uid: Some(1000),
        cgroup: Some("/web.slice".to_owned()),
        detail: Detail::FdLeak(leak),
        monotonic_ns: 0,
    };
    let json = serde_json::to_value(&event).expect("an event is JSON");
    sysops_tests::schema::hold("event", &json);
    assert_eq!(serde_json::from_value::<Event>(json).expect("it was written so"), event);
}
