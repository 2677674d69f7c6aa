package bench

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestPercentile(t *testing.T) {
	for _, c := range []struct {
		values []float64
		p      float64
		want   float64
	}{
		{[]float64{7}, 50, 7},
		{[]float64{7}, 99, 7},
		{[]float64{1, 2}, 50, 1},
		{[]float64{1, 2, 3}, 50, 2},
		{[]float64{1, 2, 3, 4}, 99, 4},
		{[]float64{1, 2, 3, 4}, 0, 1},
		{[]float64{1, 2, 3, 4}, 100, 4},
	} {
		if got := percentile(c.values, c.p); got != c.want {
			t.Errorf("percentile %v of %v is %v, want %v", c.p, c.values, got, c.want)
		}
	}
	if !math.IsNaN(percentile(nil, 50)) {
		t.Error("the percentile of nothing is a number")
	}
}

// A percentile is one of the values, at least that share of the values is not above it, and it does not depend on their order.
func TestPercentileProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Float64Range(0, 1e6), 1, 200).Draw(t, "values")
		shuffled := rapid.Permutation(values).Draw(t, "shuffled")
		sample := sampleOf(values)
		if sample != sampleOf(shuffled) {
			t.Fatal("the order of measurements counts")
		}
		for p, got := range map[float64]float64{50: sample.P50, 99: sample.P99} {
			if !slices.Contains(values, got) {
				t.Fatalf("p%v is %v, which was not measured", p, got)
			}
			below := 0
			for _, v := range values {
				if v <= got {
					below++
				}
			}
			if float64(below) < p/100*float64(len(values)) {
				t.Fatalf("only %d of %d values are up to p%v", below, len(values), p)
			}
		}
	})
}

func TestAims(t *testing.T) {
	row := Row{Against: "bare", Measured: Sample{P50: 90}, Reference: Sample{P50: 30}}
	if row.Ratio() != 3 {
		t.Errorf("90 against 30 is %v", row.Ratio())
	}
	for _, c := range []struct {
		aim  Aim
		want string
	}{
		{Aim{}, ""},
		{Aim{Ratio: 3}, "met"},
		{Aim{Ratio: 2.9}, "MISSED"},
		{Aim{Most: 90}, "met"},
		{Aim{Most: 89}, "MISSED"},
		{Aim{Least: 91}, "MISSED"},
		{Aim{Ratio: 4, Most: 80}, "MISSED"},
	} {
		row.Aim = c.aim
		if got := row.verdict(); got != c.want {
			t.Errorf("aim %+v: %q, want %q", c.aim, got, c.want)
		}
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	err := printTable(&out, []Row{
		{Figure: "pod", What: "pod create → Ready", Unit: "ms", Measured: milliseconds([]time.Duration{90 * time.Millisecond, 120 * time.Millisecond}),
			Against: "runc run", Reference: Sample{P50: 30, P99: 44, N: 2}, Aim: Aim{Ratio: 4}, Load: 1.26},
		{Figure: "idle", What: "memory", Unit: "MiB", Measured: Sample{P50: 171.25, P99: 171.25, N: 1}, Aim: Aim{Most: 150}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{
		{"pod create → Ready", "90 / 120 ms (2)", "runc run: 30 / 44 ms (2)", "3.00×", "≤ 4×", "met", "1.3", "peer bench --only pod"},
		{"memory", "171 MiB", "–", "–", "≤ 150 MiB", "MISSED", "0.0", "peer bench --only idle"},
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")[1:]
	for i, line := range lines {
		var cells []string
		for cell := range strings.SplitSeq(line, "  ") {
			if cell = strings.TrimSpace(cell); cell != "" {
				cells = append(cells, cell)
			}
		}
		if !slices.Equal(cells, want[i]) {
			t.Errorf("line %d: %q, want %q", i, cells, want[i])
		}
	}
}

func TestAimsInTheReferencesTerms(t *testing.T) {
	row := Row{Against: "etcd", Measured: Sample{P50: 200, P99: 11}, Reference: Sample{P50: 100, P99: 10}}
	for aim, met := range map[Aim]bool{
		{LeastRatio: 2}: true, {LeastRatio: 2.1}: false, {Tail: 1.1}: true, {Tail: 1}: false, {LeastRatio: 2, Tail: 1}: false,
	} {
		if row.Aim = aim; row.Met() != met {
			t.Errorf("%+v met: %v", aim, !met)
		}
	}
}

func TestChoose(t *testing.T) {
	chosen, err := choose([]string{"loss", "pod"})
	if err != nil || len(chosen) != 2 || chosen[0].name != "pod" {
		t.Errorf("chosen: %v, %v", chosen, err)
	}
	if _, err := choose([]string{"speed"}); err == nil || !strings.Contains(err.Error(), "service3") {
		t.Errorf("an unknown figure: %v", err)
	}
}
