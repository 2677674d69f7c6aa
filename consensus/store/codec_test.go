package store

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

func TestEncodingsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, s := newModel(7), New(7, Limits{})
		for range 5 {
			tx := drawTransaction(t, m)
			m.apply(tx)
			b := AppendTransaction(nil, tx)
			if len(b) > TransactionSize(tx) {
				t.Fatalf("%d bytes, announced at most %d", len(b), TransactionSize(tx))
			}
			got, err := DecodeTransaction(b)
			if err != nil || fmt.Sprint(got) != fmt.Sprint(tx) {
				t.Fatalf("%+v reads back as %+v, %v", tx, got, err)
			}
			res, events := s.Apply(got)
			res2, err := DecodeResult(AppendResult(nil, res))
			if err != nil || fmt.Sprint(res2) != fmt.Sprint(res) {
				t.Fatalf("%+v reads back as %+v, %v", res, res2, err)
			}
			events = append(events, Event{Revision: 9, Progress: true})
			events2, err := DecodeEvents(AppendEvents(nil, events))
			if err != nil || fmt.Sprint(events2) != fmt.Sprint(events) {
				t.Fatalf("%+v reads back as %+v, %v", events, events2, err)
			}
			kvs, err := DecodeKVs(AppendKVs(nil, res.Failed))
			if err != nil || fmt.Sprint(kvs) != fmt.Sprint(res.Failed) {
				t.Fatalf("%+v reads back as %+v, %v", res.Failed, kvs, err)
			}
		}
	})
}

func TestUnknownVersionsAreNamed(t *testing.T) {
	b := AppendTransaction(nil, write("k", 3))
	b[0] = 9
	if _, err := DecodeTransaction(b); !errors.Is(err, ErrVersion) {
		t.Errorf("transaction of version 9: %v", err)
	}
	if _, err := DecodeResult([]byte{9, 0}); !errors.Is(err, ErrVersion) {
		t.Errorf("result of version 9: %v", err)
	}
}

// TestEveryFlippedBitOfALogEntryIsSeen flips each bit of an entry once.
func TestEveryFlippedBitOfALogEntryIsSeen(t *testing.T) {
	tx := write("some/key", 3)
	tx.Stamp, tx.Conditions = 77, []Condition{{Key: "other", Revision: 4}}
	whole := AppendTransaction([]byte("before it"), tx)[len("before it"):]
	if got, err := DecodeTransaction(whole); err != nil || fmt.Sprint(got) != fmt.Sprint(tx) {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range 8 * len(whole) {
		b := bytes.Clone(whole)
		b[i/8] ^= 1 << (i % 8)
		if got, err := DecodeTransaction(b); err == nil {
			t.Errorf("bit %d of byte %d: read as %+v", i%8, i/8, got)
		}
	}
}

// TestEntriesOfTheFirstVersionAreRead reads an entry without a checksum.
func TestEntriesOfTheFirstVersionAreRead(t *testing.T) {
	tx := write("k", 3)
	old := AppendTransaction(nil, tx)
	old = old[:len(old)-4]
	old[0] = 1
	if got, err := DecodeTransaction(old); err != nil || fmt.Sprint(got) != fmt.Sprint(tx) {
		t.Errorf("%+v, %v", got, err)
	}
}

// snapshot is a state with every kind of record in it.
func snapshot(t testing.TB) []byte {
	s := New(2, Limits{})
	for i := range 20 {
		tx := write(fmt.Sprint("k", i%7), i)
		tx.ID[0] = byte(i)
		tx.Ops = append(tx.Ops, Op{Key: "gone", Delete: i%2 == 0, Value: []byte("v"), Expires: int64(i)})
		s.Apply(tx)
	}
	var b bytes.Buffer
	if err := s.View().WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestDamagedSnapshotsAreRefused(t *testing.T) {
	good := snapshot(t)
	if _, err := ReadSnapshot(bytes.NewReader(good), 2, Limits{}); err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if _, err := ReadSnapshot(bytes.NewReader(good[:n]), 2, Limits{}); !errors.Is(err, ErrSnapshot) {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
		bad := bytes.Clone(good)
		bad[n] ^= 0x10
		if _, err := ReadSnapshot(bytes.NewReader(bad), 2, Limits{}); !errors.Is(err, ErrSnapshot) {
			t.Fatalf("flipped a bit of byte %d: %v", n, err)
		}
	}
	if _, err := ReadSnapshot(bytes.NewReader(good), 3, Limits{}); !errors.Is(err, ErrSnapshot) {
		t.Errorf("snapshot of another shard: %v", err)
	}
	newer := bytes.Clone(good)
	newer[len(snapshotMagic)]++
	if _, err := ReadSnapshot(bytes.NewReader(newer), 2, Limits{}); !errors.Is(err, ErrVersion) {
		t.Errorf("snapshot of a newer version: %v", err)
	}
	if _, err := ReadSnapshot(bytes.NewReader(append(bytes.Clone(good), 0)), 2, Limits{}); !errors.Is(err, ErrSnapshot) {
		t.Errorf("snapshot with a tail: %v", err)
	}
}

func FuzzDecoders(f *testing.F) {
	f.Add(AppendTransaction(nil, Transaction{
		Stamp: 5, Conditions: []Condition{{"a", 1}},
		Ops: []Op{{Key: "a", Value: []byte("v"), Expires: 4}, {Key: "b", Delete: true}},
	}))
	f.Add(AppendResult(nil, Result{OK: true, Revisions: []Revision{1, 2}, Failed: []KV{{Key: "k"}}}))
	f.Add(AppendEvents(nil, []Event{{Key: "k", Value: []byte("v"), Revision: 9}, {Revision: 10, Progress: true}}))
	f.Add(AppendKVs(nil, []KV{{Key: "k", Value: []byte("v"), Mod: 7}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if tx, err := DecodeTransaction(b); err == nil {
			if _, err := DecodeTransaction(AppendTransaction(nil, tx)); err != nil {
				t.Errorf("transaction %+v does not read back: %v", tx, err)
			}
			New(1, Limits{}).Apply(tx)
		}
		if res, err := DecodeResult(b); err == nil {
			if _, err := DecodeResult(AppendResult(nil, res)); err != nil {
				t.Errorf("result %+v does not read back: %v", res, err)
			}
		}
		if events, err := DecodeEvents(b); err == nil {
			if _, err := DecodeEvents(AppendEvents(nil, events)); err != nil {
				t.Errorf("events %+v do not read back: %v", events, err)
			}
		}
		if kvs, err := DecodeKVs(b); err == nil {
			if _, err := DecodeKVs(AppendKVs(nil, kvs)); err != nil {
				t.Errorf("versions %+v do not read back: %v", kvs, err)
			}
		}
	})
}

func FuzzReadSnapshot(f *testing.F) {
	f.Add(snapshot(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := ReadSnapshot(bytes.NewReader(b), 2, Limits{}); err != nil && !errors.Is(err, ErrSnapshot) {
			t.Errorf("unnamed error: %v", err)
		}
	})
}
