package bench

import (
	"reflect"
	"testing"
)

func TestParseBenchmarks(t *testing.T) {
	got, err := parseBenchmarks(`goos: linux
BenchmarkBind/nodes=1000/shards=4-2         	       1	8724346438 ns/op	       247.9 cpu-µs/pod	      1176 pods/s	         0 refused
time=… msg="Failed to encode watch event"
BenchmarkRollover 1 3000 k8s-writes
PASS
`)
	want := []goBenchmark{
		{"Bind/nodes=1000/shards=4", map[string]float64{"ns/op": 8724346438, "cpu-µs/pod": 247.9, "pods/s": 1176, "refused": 0}},
		{"Rollover", map[string]float64{"k8s-writes": 3000}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "PASS\n", "BenchmarkX-2 1 many ns/op\n"} {
		if got, err := parseBenchmarks(bad); err == nil {
			t.Errorf("%q is read as %v", bad, got)
		}
	}
}
