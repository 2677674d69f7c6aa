package sim

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestDrawnSeeds simulates clusters that are drawn from a few fixed seeds.
func TestDrawnSeeds(t *testing.T) { drawn(t, "fixed", 3, 4) }

// TestFreshSeeds simulates clusters that nobody has simulated before: their seeds are drawn when the test runs. Since a seed always does
// the same, whatever it finds can be found again. SHOAL_SIM_FRESH says how many; `just sim` asks for six.
func TestFreshSeeds(t *testing.T) {
	seeds := 0
	if text := os.Getenv("SHOAL_SIM_FRESH"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("SHOAL_SIM_FRESH is %q; expected: how many seeds", text)
		}
		seeds = n
	}
	if seeds == 0 {
		t.Log("simulated: no fresh seeds, SHOAL_SIM_FRESH asks for none")
		return
	}
	drawn(t, "fresh", rand.Uint64N(1_000_000_000), seeds)
}

func drawn(t *testing.T, which string, first uint64, seeds int) {
	t.Helper()
	soak := Soak{Seed: first, Seeds: seeds, Workers: 2, Failed: func(r *Result) {
		s := r.Scenario
		for _, check := range r.Failed() {
			t.Errorf("seed %d: %s: %v", s.Config.Seed, check.Name, check.Found)
		}
		if found, is := r.Violated(); is {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			shrunk := s.Shrink(ctx, found, Shrinking{})
			shrunk.Scenario.Title = shrunk.Describe(s, "this tree")
			t.Logf("Save this, and run it with `peer sim run FILE`:\n\n%s", shrunk.Scenario.Text())
		}
	}}
	done, err := soak.Run(t.Context())
	if err != nil || done.Seeds != seeds {
		t.Errorf("%d of %d seeds were simulated: %v", done.Seeds, seeds, err)
	}
	t.Logf("simulated: %d %s seeds (%d to %d), %s of virtual time", done.Seeds, which, first, done.Next-1, done.Virtual)
}

// TestSoaksStop ends a soak while it runs: seeds that were not simulated to their end do not count.
func TestSoaksStop(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	done, err := Soak{Seed: 1, Workers: 2, Progress: func(s Soaked) {
		if s.Seeds == 2 {
			stop()
		}
	}}.Run(ctx)
	if err != nil || done.Seeds < 2 || done.Seeds > 3 || done.Virtual < 4*time.Minute {
		t.Errorf("%+v, %v", done, err)
	}
}

// TestDrawnScenariosCanBeWritten reads what a seed's scenario is written as.
func TestDrawnScenariosCanBeWritten(t *testing.T) {
	for seed := range uint64(200) {
		s, err := Drawn(seed)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(strings.NewReader(s.Text()), s.Name+".txt")
		if err != nil || again.Text() != s.Text() {
			t.Fatalf("seed %d is written as\n%s\nwhich is read with %v", seed, s.Text(), err)
		}
	}
}
