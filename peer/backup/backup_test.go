package backup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"shoal/consensus/store"
)

func write(t testing.TB, passphrase string, shards map[uint64][]store.KV, order []uint64) []byte {
	t.Helper()
	var file bytes.Buffer
	w, err := NewWriter(&file, passphrase, Head{Cluster: "c", Version: "v1", At: 7, Shards: order}, []byte(`{"secret":1}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, shard := range order {
		if err := errors.Join(w.Shard(shard), w.Keys(shards[shard])); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func read(file []byte, passphrase string) (map[uint64][]store.KV, Head, error) {
	r, err := NewReader(bytes.NewReader(file), passphrase)
	if err != nil {
		return nil, Head{}, err
	}
	shards := map[uint64][]store.KV{}
	for {
		shard, kvs, err := r.Next()
		if errors.Is(err, io.EOF) {
			return shards, r.Head(), nil
		}
		if err != nil {
			return nil, r.Head(), err
		}
		shards[shard] = append(shards[shard], kvs...)
	}
}

func some(n, size int) []store.KV {
	var kvs []store.KV
	for i := range n {
		kvs = append(kvs, store.KV{Key: fmt.Sprintf("/k/%05d", i), Value: bytes.Repeat([]byte{byte(i)}, size), Create: 3, Mod: 5, Expires: int64(i)})
	}
	return kvs
}

func TestBackupsReadBack(t *testing.T) {
	shards := map[uint64][]store.KV{0: some(3, 10), 2: nil, 5: some(3, frameBytes)}
	for _, passphrase := range []string{"", "a passphrase"} {
		got, head, err := read(write(t, passphrase, shards, []uint64{0, 2, 5}), passphrase)
		if err != nil || head.At != 7 || head.Cluster != "c" || len(head.Shards) != 3 {
			t.Fatalf("passphrase %q: %+v, %v", passphrase, head, err)
		}
		for shard, want := range shards {
			if !reflect.DeepEqual(got[shard], want) {
				t.Errorf("passphrase %q: shard %d holds %d keys, want %d", passphrase, shard, len(got[shard]), len(want))
			}
		}
	}
}

func TestPassphrases(t *testing.T) {
	file := write(t, "right", map[uint64][]store.KV{0: {{Key: "k", Value: []byte("plainly visible")}}}, []uint64{0})
	if bytes.Contains(file, []byte("plainly visible")) {
		t.Error("the file shows what it holds")
	}
	for _, passphrase := range []string{"", "wrong"} {
		if _, _, err := read(file, passphrase); !errors.Is(err, ErrPassphrase) {
			t.Errorf("passphrase %q: %v", passphrase, err)
		}
	}
	if _, _, err := read(file[:len(file)-5], "right"); !errors.Is(err, ErrDamaged) {
		t.Errorf("cut short: %v", err)
	}
}

// TestEveryDamageIsFound: whatever byte is changed, wherever the file is cut, and whatever is added to it.
func TestEveryDamageIsFound(t *testing.T) {
	file := write(t, "", map[uint64][]store.KV{0: some(5, 20), 1: some(5, 300)}, []uint64{0, 1})
	rapid.Check(t, func(t *rapid.T) {
		bad := bytes.Clone(file)
		switch rapid.IntRange(0, 2).Draw(t, "damage") {
		case 0:
			bad[rapid.IntRange(0, len(bad)-1).Draw(t, "byte")] ^= byte(rapid.IntRange(1, 255).Draw(t, "flip"))
		case 1:
			bad = bad[:rapid.IntRange(0, len(bad)-1).Draw(t, "length")]
		case 2:
			bad = append(bad, 'x')
		}
		if _, _, err := read(bad, ""); !errors.Is(err, ErrDamaged) {
			t.Fatalf("not found: %v", err)
		}
	})
}

func TestNewerBackupsAreRefused(t *testing.T) {
	var file bytes.Buffer
	w, err := NewWriter(&file, "", Head{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	file.Reset()
	w.w.Reset(&file)
	if err := errors.Join(w.raw([]byte(magic)), w.frame(kindHead, []byte(`{"format":2,"version":"v9"}`)), w.w.Flush()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := read(file.Bytes(), ""); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "v9") {
		t.Errorf("a newer file: %v", err)
	}
}

func FuzzReader(f *testing.F) {
	f.Add(write(f, "", map[uint64][]store.KV{0: some(2, 4)}, []uint64{0}))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, file []byte) {
		if _, _, err := read(file, ""); err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) && !errors.Is(err, ErrPassphrase) {
			t.Errorf("an error without a kind: %v", err)
		}
	})
}
