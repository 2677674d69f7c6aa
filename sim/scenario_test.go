package sim

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"shoal/sim/model"
)

func parse(t *testing.T, text string) *Scenario {
	t.Helper()
	s, err := Parse(strings.NewReader(text), "")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestScenarios runs every built-in text and compares with what it expects. With -v it prints what came of it.
func TestScenarios(t *testing.T) {
	var virtual time.Duration
	for _, name := range Builtin() {
		t.Run(name, func(t *testing.T) {
			scenario, err := Open(name)
			if err != nil {
				t.Fatal(err)
			}
			if scenario.Title == "" || scenario.Name != name {
				t.Errorf("the text does not begin with a comment that says what it is about, or is called %q", scenario.Name)
			}
			if len(scenario.Expects) == 0 {
				t.Error("the text does not say what is expected")
			}
			var trace strings.Builder
			result, err := scenario.Run(t.Context(), Options{Trace: &trace})
			if err != nil {
				t.Fatal(err)
			}
			o := result.Outcome
			virtual += result.Simulated
			t.Logf("%d steps, %s, %d evictions, %d elections, %d fenced, %d refused, trace %s",
				o.Steps, settled(o), o.Evictions, o.Elections, o.Fenced, o.Refused, o.Hash[:16])
			for _, check := range result.Failed() {
				t.Errorf("%s (seed %d): %s: %q, but %q", name, scenario.Config.Seed, check.Name, check.Says, check.Found)
			}
			if t.Failed() {
				t.Log(trace.String())
			}
		})
	}
	t.Logf("simulated: %d scenarios, %s of virtual time", len(Builtin()), virtual)
}

// TestTextsCanBeWrittenAgain demands that a scenario written down again is the same one, and the same run.
func TestTextsCanBeWrittenAgain(t *testing.T) {
	for _, name := range []string{"many_faults", "zone_lost", "join_storm"} {
		first, err := Open(name)
		if err != nil {
			t.Fatal(err)
		}
		second := parse(t, first.Text())
		if first.Text() != second.Text() || first.Title != second.Title {
			t.Errorf("%s, written again:\n%s\nand once more:\n%s", name, first.Text(), second.Text())
		}
		a, err1 := first.Run(t.Context(), Options{})
		b, err2 := second.Run(t.Context(), Options{})
		if err1 != nil || err2 != nil || a.Outcome.Hash != b.Outcome.Hash {
			t.Errorf("%s runs differently when it is written again (%v, %v)", name, err1, err2)
		}
	}
}

// TestEveryFaultHasALine writes a fault of each kind down and reads it again.
func TestEveryFaultHasALine(t *testing.T) {
	for _, form := range model.FaultForms {
		f := model.Fault{At: 10 * time.Second, Kind: form.Kind}
		if form.Target {
			f.Target = "zone b"
		}
		if form.Other {
			f.Other = "n1,n2"
		}
		if form.Count != "" {
			f.Count = 4
		}
		if form.By != "" {
			f.By = 250 * time.Millisecond
		}
		if form.Rate != "" {
			f.Rate = 0.25
		}
		if form.Kind == model.Slow {
			f.Rate = 10
		}
		if form.Ends != "" {
			f.For = 5 * time.Second
		}
		s := parse(t, "nodes 6 zones 3\nat 10s "+FaultText(f)+"\nrun 60s\nexpect no brake\n")
		if len(s.Config.Faults) != 1 || !reflect.DeepEqual(s.Config.Faults[0], f) {
			t.Errorf("%q is read as %+v, not as %+v", FaultText(f), s.Config.Faults, f)
		}
	}
}

func TestFaultsAgainAndAgain(t *testing.T) {
	s := parse(t, "nodes 6 zones 3\nfrom 20s until 50s every 10s handover leader 1\nrun 60s\nexpect no brake\n")
	var times []time.Duration
	for _, f := range s.Config.Faults {
		times = append(times, f.At)
	}
	if want := []time.Duration{20 * time.Second, 30 * time.Second, 40 * time.Second, 50 * time.Second}; !reflect.DeepEqual(times, want) {
		t.Errorf("%v, want %v", times, want)
	}
}

func TestParseErrors(t *testing.T) {
	const head = "nodes 3 zones 1 cpu 4 memory 8Gi pods 110\n"
	for _, c := range []struct {
		text         string
		line, column int
		say          string // part of the message
		meant        string
	}{
		{"", 1, 0, "how many nodes", ""},
		{head + "expect no brake\n", 3, 0, "how long to run", ""},
		{head + "explode n1\n", 2, 1, `no line begins with "explode"`, ""},
		{head + "  shrads 3\n", 2, 3, `no line begins with "shrads"`, "shards"},
		{"nodes three zones 1 cpu 4 memory 8Gi pods 110\n", 1, 7, `"three" is no whole number`, ""},
		{"nodes 99999999 zones 1\n", 1, 7, "from 1 to 20000", ""},
		{"nodes 3 zone 1\n", 1, 9, `"zone" says nothing about nodes`, "zones"},
		{"nodes 3 zones\n", 1, 15, "ends too early", ""},
		{"nodes 3 cpu 0\n", 1, 13, "runs nothing", ""},
		{head + head, 2, 1, "line 1 says it already", ""},
		{head + "at soon crash n1\n", 2, 4, `"soon" is no duration`, ""},
		{head + "at -5s crash n1\n", 2, 4, "less than 0s", ""},
		{head + "at 10s crash n4\nrun 60s\nexpect no brake\n", 2, 14, "they are n1 to n3", ""},
		{head + "at 10s cut zone b\nrun 60s\nexpect no brake\n", 2, 12, `there is no zone "b"`, ""},
		{head + "at 70s crash n1\nrun 60s\nexpect no brake\n", 2, 14, "after the run has ended", ""},
		{head + "at 10s melt n1\n", 2, 8, `"melt" is nothing that can happen`, ""},
		{head + "at 10s crsah n1\n", 2, 8, `"crsah" is nothing that can happen`, "crash"},
		{head + "at 10s lose n1 rate lots\n", 2, 21, `"lots" is no number`, ""},
		{head + "at 10s lose n1\nrun 60s\nexpect no brake\n", 2, 13, "of all messages", ""},
		{head + "at 10s lose n1 rate NaN\n", 2, 21, `"NaN" is no number`, ""},
		{head + "at 10s block n1 n2\n", 2, 17, `"n2" stands where "to" belongs`, ""},
		{head + "at 10s crash n1 fro 5s\n", 2, 17, `"fro" is too much`, "for"},
		{head + "from 10s until 20s every 0s crash n1\n", 2, 26, "less than 1ms", ""},
		{head + "from 1s until 900h every 1ms crash n1\n", 2, 26, "more than 1000000 faults", ""},
		{head + "random 5 faults from 20s until 10s\n", 2, 32, "10s is not after 20s", ""},
		{head + "random 5 faults from 20s until 2m\nrun 60s\nexpect no brake\n", 2, 0, "after the run has ended", ""},
		{head + "run 60s please\n", 2, 9, `"please" is too much`, ""},
		{head + "run 100000h\n", 2, 5, "is more than 1000h", ""},
		{head + "deployment Web replicas 3 cpu 1 memory 1Gi\n", 2, 12, "cannot be a name", ""},
		{head + "deployment web replicas 3 cpu much memory 1Gi\n", 2, 31, `"much" is no quantity`, ""},
		{head + "\n# nothing\nexpect evictions ~ 3\n", 4, 18, `"~" does not compare`, ""},
		{head + "expect evicted = 3\n", 2, 8, `"evicted" cannot be expected`, ""},
		{head + "expect brake d\nrun 60s\n", 2, 0, `there is no zone "d"`, ""},
		{head + "at 10s core most\nrun 60s\n", 2, 13, "there is no node", ""},
		{head + strings.Repeat("x", 70_000), 2, 0, "longer than 64 KiB", ""},
	} {
		_, err := Parse(strings.NewReader(c.text), "some.txt")
		var syntax *SyntaxError
		if !errors.As(err, &syntax) || syntax.Line != c.line || syntax.Column != c.column || !strings.Contains(err.Error(), c.say) || syntax.Expected == "" ||
			syntax.Meant != c.meant || syntax.File != "some.txt" {
			t.Errorf("%.60q: %.300v; want line %d, column %d, %q and the hint %q", c.text, err, c.line, c.column, c.say, c.meant)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	for name, say := range map[string]string{
		"node_deis":      `did you mean "node_dies"?`,
		"nothing_at_all": "`peer sim list`",
		t.TempDir():      "is a folder",
	} {
		if _, err := Open(name); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %v; want %q", name, err, say)
		}
	}
}

func TestStoppedRunsKeepWhatWasSeen(t *testing.T) {
	s, err := Open("many_faults")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	result, err := s.Run(ctx, Options{Progress: func(at model.Sample) {
		if at.At >= time.Minute {
			stop()
		}
	}})
	if !errors.Is(err, context.Canceled) || result.Simulated < time.Minute || result.Simulated > 70*time.Second || len(result.Events) == 0 || result.Checks != nil {
		t.Errorf("%v, %s simulated, %d events, checks %v", err, result.Simulated, len(result.Events), result.Checks)
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range Builtin() {
		text, _ := builtin(name)
		f.Add(text)
	}
	f.Add("nodes 3 zones 1 cpu 4 memory 8Gi pods 110\nfrom 1s until 9s every 1s block n1,n2 to zone a for 1s\nat 1s jump all by -5s\nrun 60s\nexpect not ready\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(strings.NewReader(text), "")
		if err != nil {
			var syntax *SyntaxError
			if !errors.As(err, &syntax) || syntax.Line < 1 || syntax.Reason == "" || syntax.Expected == "" {
				t.Fatalf("%q is answered with %v", text, err)
			}
			return
		}
		again, err := Parse(strings.NewReader(s.Text()), "")
		if err != nil || again.Text() != s.Text() {
			t.Fatalf("%q is written as\n%s\nwhich is read with %v", text, s.Text(), err)
		}
	})
}
