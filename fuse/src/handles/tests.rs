//! Open files, their texts and who pays for them.

use ambit_sysinfo::Owner;
use proptest::prelude::*;

use super::*;

fn say(words: &str) -> impl FnOnce(&mut Text) -> Result<Payer, ()> + '_ {
    move |text| {
        text.put(words);
        Ok(None)
    }
}

fn read(handles: &Handles, handle: u64, offset: u64, anew: &str) -> Option<String> {
    let file = handles.find(handle, 7)?;
    let mut seen = String::new();
    let take = |part: &[u8]| seen = String::from_utf8_lossy(part).into_owned();
    handles.read(&file, offset, 100, say(anew), take).unwrap();
    Some(seen)
}

#[test]
fn a_successor_knows_where_a_text_ended() {
    let handles = Handles::new();
    let render = |text: &mut Text| -> Result<Payer, ()> {
        text.buffer().extend_from_slice(&[b'x'; 700]);
        Ok(None)
    };
    let handle = handles.open(1, 9, render).unwrap();
    assert!(was_read(handle, 700) && was_read(handle, 701));
    assert!(!was_read(handle, 699) && !was_read(handle, 0) && !was_read(UNKEPT, 5));
    let long = |text: &mut Text| -> Result<Payer, ()> {
        text.buffer().resize(1 << 19, b'x');
        Ok(None)
    };
    let handle = handles.open(1, 9, long).unwrap();
    assert!(handles.find(handle, 9).is_some() && !was_read(handle, 1 << 20));
}

#[test]
fn one_pass_reads_one_text_and_going_back_reads_a_new_one() {
    let handles = Handles::new();
    let handle = handles.open(1, 7, say("first")).unwrap();
    assert_eq!(read(&handles, handle, 0, "second").as_deref(), Some("first"));
    assert_eq!(read(&handles, handle, 2, "second").as_deref(), Some("rst"));
    assert_eq!(read(&handles, handle, 5, "second").as_deref(), Some(""));
    assert_eq!(read(&handles, handle, 0, "second").as_deref(), Some("second"));
    assert_eq!(read(&handles, handle, u64::MAX, "third").as_deref(), Some(""));
    handles.release(handle);
    assert_eq!(read(&handles, handle, 0, "x"), None);
    assert_eq!(handles.held.taken(), 0);
}

#[test]
fn a_slot_is_used_again_under_another_handle() {
    let handles = Handles::new();
    let first = handles.open(1, 7, say("first")).unwrap();
    handles.release(first);
    let second = handles.open(1, 7, say("second")).unwrap();
    assert_eq!(place(first), place(second));
    assert_ne!(first, second);
    assert_eq!(read(&handles, first, 0, "x"), None);
    handles.release(first);
    assert_eq!(read(&handles, second, 0, "x").as_deref(), Some("second"));
}

#[test]
fn handles_of_another_process_or_file_are_not_found() {
    let (ours, theirs) = (Handles::new(), Handles::new());
    let handle = theirs.open(1, 7, say("theirs")).unwrap();
    ours.open(1, 7, say("ours")).unwrap();
    assert!(ours.find(handle, 7).is_none());
    assert!(theirs.find(handle, 8).is_none());
    ours.adopt(handle, 7).unwrap();
    assert_eq!(read(&ours, handle, 2, "anew").as_deref(), Some("ew"));
    ours.release(handle);
    assert!(ours.find(handle, 7).is_none());
}

#[test]
fn a_reader_that_hangs_does_not_delay_others() {
    let handles = Handles::new();
    let [held, other] = [1, 1].map(|thread| handles.open(thread, 7, say("first")).unwrap());
    assert_eq!(place(held).0, place(other).0);
    read(&handles, held, 0, "");
    let file = handles.find(held, 7).unwrap();
    let hangs = |text: &mut Text| -> Result<Payer, ()> {
        assert_eq!(read(&handles, other, 0, "").as_deref(), Some("first"));
        assert_eq!(read(&handles, held, 0, "own").as_deref(), Some("own"));
        assert_eq!(read(&handles, held, 1, "own").as_deref(), Some("wn"));
        handles.release(other);
        text.put("late");
        Ok(None)
    };
    handles.read(&file, 0, 100, hangs, |text| assert_eq!(text, b"late")).unwrap();
    assert_eq!(read(&handles, held, 1, "").as_deref(), Some("ate"));
    // A file that is released meanwhile is closed by the last thread that uses it.
    let file = handles.find(held, 7).unwrap();
    let closed = |text: &mut Text| -> Result<Payer, ()> {
        handles.release(held);
        assert_eq!(read(&handles, held, 0, ""), None);
        assert_ne!(place(handles.open(1, 7, say("other")).unwrap()), place(held));
        text.put("late");
        Ok(None)
    };
    handles.read(&file, 0, 100, closed, |_| {}).unwrap();
    let again = handles.open(1, 7, say("again")).unwrap();
    assert_eq!(place(again), place(held));
    assert_eq!(handles.held.taken(), "otheragain".len() + 2 * BESIDE);
}

#[test]
fn a_failure_or_a_panic_gives_the_slot_back() {
    let handles = Handles::new();
    assert_eq!(handles.open(1, 7, |_| Err("no")), Err("no"));
    let broken = |text: &mut Text| -> Result<Payer, ()> {
        text.put("half");
        panic!("expected by the test")
    };
    let panics = || handles.open(1, 7, broken);
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).unwrap_err();
    let handle = handles.open(1, 7, say("whole")).unwrap();
    assert_eq!(place(handle).1, 0, "the only slot is used again");
    assert_eq!(read(&handles, handle, 0, "x").as_deref(), Some("whole"));
}

#[test]
fn what_open_files_hold_is_bounded() {
    let handles = Handles::new();
    let large = "x".repeat(HELD_AT_MOST / 4);
    let open: Vec<_> = (0..6).map(|n| handles.open(n, 7, say(&large)).unwrap()).collect();
    assert_eq!(open.iter().filter(|&&handle| handle == UNKEPT).count(), 3);
    open.iter().for_each(|&handle| handles.release(handle));
    assert_eq!(handles.held.taken(), 0);
    assert_ne!(handles.open(1, 7, say("small")).unwrap(), UNKEPT);
}

#[test]
fn an_account_with_many_open_files_leaves_room_for_others() {
    let handles = Handles::new();
    let [one, other] = [1, 2].map(|user| Account::new(Owner::User(user)));
    let large = "x".repeat(HELD_AT_MOST / 100);
    let open = |account: &Arc<Account>| {
        let render = |text: &mut Text| -> Result<Payer, ()> {
            text.put(&large);
            Ok(Some(account.clone()))
        };
        handles.open(1, 7, render).unwrap()
    };
    let mut kept: Vec<_> = (0..200).map(|_| open(&one)).filter(|&one| one != UNKEPT).collect();
    assert!((45..=50).contains(&kept.len()), "{}", kept.len());
    kept.extend((0..10).map(|_| open(&other)));
    assert!(!kept.contains(&UNKEPT), "the other account's are kept");
    // A text that grows when it is rendered again is charged to the account, or not kept.
    let file = handles.find(kept[0], 7).unwrap();
    for length in [HELD_AT_MOST, 5] {
        let grown = |text: &mut Text| -> Result<Payer, ()> {
            text.buffer().resize(length, b'y');
            Ok(None)
        };
        let mut seen = 0;
        handles.read(&file, 1, 100, grown, |part| seen = part.len()).unwrap();
        handles.read(&file, 0, 9, grown, |part| seen = part.len()).unwrap();
        assert_eq!(seen, length.min(9));
    }
    kept.into_iter().for_each(|handle| handles.release(handle));
    assert_eq!(handles.held.taken(), 0);
}

proptest! {
    #[test]
    fn a_window_never_leaves_the_text(text: Vec<u8>, offset: u64, size: u32) {
        let part = window(&text, offset, size);
        prop_assert!(part.len() <= size as usize && part.len() <= text.len());
        let offset = offset % (text.len() as u64 + 1);
        let part = window(&text, offset, size);
        prop_assert!(text[offset as usize..].starts_with(part));
    }
}
