package store

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"testing"
	"time"
)

// The state of these benchmarks: as many pods of 3 KB as a large cluster has in one shard, in namespaces of a thousand.
const (
	benchKeys  = 100_000
	benchValue = 3 << 10
)

func benchKey(i int) string {
	return fmt.Sprintf("/registry/pods/namespace-%d/deployment-%d-7c9f5b6d4-x%05d", i/1000, i%1000/10, i)
}

func filled(tb testing.TB, keys, size int) *Store {
	tb.Helper()
	s := New(1, Limits{Age: time.Hour})
	value := make([]byte, size)
	for i := range keys {
		// Each value is an array of its own, as decoded transactions give them.
		s.Apply(Transaction{Ops: []Op{{Key: benchKey(i), Value: bytes.Clone(value)}}})
		if i%32 == 0 {
			s.View()
		}
	}
	return s
}

// Apply one write each to a store of 100,000 keys. batch is how many transactions raft applies at once, each batch ending in a View.
func BenchmarkApply(b *testing.B) {
	for _, batch := range []int{1, 32} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			s := filled(b, benchKeys, 16)
			value := make([]byte, 16)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				value[0], value[1], value[2] = byte(i), byte(i>>8), byte(i>>16)
				s.Apply(Transaction{Ops: []Op{{Key: benchKey(i * 7919 % benchKeys), Value: bytes.Clone(value)}}})
				if i%batch == 0 {
					s.View()
				}
			}
		})
	}
}

func BenchmarkGet(b *testing.B) {
	v := filled(b, benchKeys, 16).View()
	for i := 0; b.Loop(); i++ {
		if _, ok := v.Get(benchKey(i * 7919 % benchKeys)); !ok {
			b.Fatal("a key is missing")
		}
	}
}

// List a page of 500, one namespace, and everything.
func BenchmarkWalk(b *testing.B) {
	v := filled(b, benchKeys, 16).View()
	for name, r := range map[string]Range{
		"namespace": {Prefix: "/registry/pods/namespace-50/"},
		"all":       {Prefix: "/registry/pods/"},
	} {
		b.Run(name, func(b *testing.B) {
			keys := 0
			for b.Loop() {
				v.Walk(r, func(*KV) bool { keys++; return true })
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(keys), "ns/key")
		})
	}
}

// Read a range as it was 1,000 changes ago.
func BenchmarkAt(b *testing.B) {
	s := filled(b, benchKeys, 16)
	then := s.View().Revision()
	for i := range 1000 {
		s.Apply(Transaction{Ops: []Op{{Key: benchKey(i * 7919 % benchKeys), Value: []byte{1}}}})
	}
	v := s.View()
	r := Range{Prefix: "/registry/pods/namespace-50/"}
	for b.Loop() {
		old, err := v.At(then, r)
		if err != nil {
			b.Fatal(err)
		}
		old.Walk(r, func(*KV) bool { return true })
	}
}

// What a key costs in memory beside its own bytes and its value's, history included.
func BenchmarkMemory(b *testing.B) {
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		s := filled(b, benchKeys, benchValue)
		runtime.GC()
		runtime.ReadMemStats(&after)
		perKey := float64(after.HeapAlloc-before.HeapAlloc) / benchKeys
		b.ReportMetric(perKey-benchValue-float64(len(benchKey(12345))), "overhead-B/key")
		b.ReportMetric(float64(after.HeapObjects-before.HeapObjects)/benchKeys, "objects/key")
		runtime.KeepAlive(s)
	}
}

func BenchmarkSnapshot(b *testing.B) {
	s := filled(b, benchKeys, benchValue)
	var file bytes.Buffer
	if err := s.View().WriteSnapshot(&file); err != nil {
		b.Fatal(err)
	}
	b.Run("write", func(b *testing.B) {
		b.SetBytes(int64(file.Len()))
		for b.Loop() {
			if err := s.View().WriteSnapshot(io.Discard); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("read", func(b *testing.B) {
		b.SetBytes(int64(file.Len()))
		for b.Loop() {
			if _, err := ReadSnapshot(bytes.NewReader(file.Bytes()), 1, s.limits); err != nil {
				b.Fatal(err)
			}
		}
	})
}
