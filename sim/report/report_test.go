package report

import (
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"shoal/sim"
	"shoal/sim/model"
)

func run(t *testing.T, name string) *sim.Result {
	t.Helper()
	s, err := sim.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Run(t.Context(), sim.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestTimelineTellsTheStory reads the timeline of a machine's death: what happens must be told in this order.
func TestTimelineTellsTheStory(t *testing.T) {
	r := run(t, "node_dies")
	var text strings.Builder
	if err := Text(&text, r); err != nil {
		t.Fatal(err)
	}
	rest := text.String()
	for _, want := range []string{
		"6 nodes are ready", "pods are placed on", "pods are ready", "crash n5", "n5 is judged lost, ", " after the crash", "evicted from n5", "placed on",
		"everything is as desired", "Checks", "✓ capacity, identity", "✓ expect ready within 20s: ready", "Figures", "to notice that a node is lost", "times as fast as time",
	} {
		_, after, found := strings.Cut(rest, want)
		if !found {
			t.Fatalf("%q is missing, or comes too early:\n%s", want, text.String())
		}
		rest = after
	}
	if strings.Contains(text.String(), "✗") {
		t.Errorf("a good run is told with a failure:\n%s", text.String())
	}
}

func TestTimelineIsTheSameEachTime(t *testing.T) {
	r := run(t, "many_faults")
	first := Timeline(r)
	for range 5 {
		again := Timeline(r)
		for i := range first {
			if first[i] != again[i] {
				t.Fatalf("line %d is %+v, and then %+v", i, first[i], again[i])
			}
		}
	}
	for i := range first[1:] {
		if first[i+1].At < first[i].At {
			t.Errorf("%+v comes after %+v", first[i+1], first[i])
		}
	}
}

// TestFigures compares with what a run is made of: one node that dies is noticed once, after the lease's time and before evictions.
func TestFigures(t *testing.T) {
	noticed, led, elsewhere := delays(run(t, "node_dies"))
	if len(noticed) != 1 || noticed[0] < time.Second || noticed[0] > 4*time.Second || len(led) != 0 && slices.Max(led) > 3*time.Second || len(elsewhere) != 1 || elsewhere[0] < noticed[0] {
		t.Errorf("noticed after %v, led again after %v, elsewhere after %v", noticed, led, elsewhere)
	}
	if _, led, _ := delays(run(t, "leader_lost")); len(led) == 0 {
		t.Error("a leader that dies costs no time without a leader")
	}
}

// TestPage reads the page as XML, which it also is: every element is closed, every attribute quoted, and nothing comes from elsewhere.
func TestPage(t *testing.T) {
	for _, name := range []string{"zone_lost", "join_storm"} {
		r := run(t, name)
		r.Scenario.Title = `<script>alert("hello")</script> & more`
		var page strings.Builder
		if err := HTML(&page, r, "v1"); err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(page.String(), "<!DOCTYPE html>", "", 1)
		text = strings.NewReplacer(`<meta charset="utf-8">`, "", `<meta name="viewport" content="width=device-width, initial-scale=1">`, "", "<br>", "").Replace(text)
		decoder := xml.NewDecoder(strings.NewReader(text))
		elements := map[string]int{}
		for {
			token, err := decoder.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			start, is := token.(xml.StartElement)
			if !is {
				continue
			}
			elements[start.Name.Local]++
			for _, a := range start.Attr {
				if a.Name.Local == "src" || a.Name.Local == "href" {
					t.Errorf("%s: <%s %s=%q> comes from elsewhere", name, start.Name.Local, a.Name.Local, a.Value)
				}
				if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") || a.Name.Local == "width" && strings.HasPrefix(a.Value, "-") {
					t.Errorf("%s: <%s %s=%q>", name, start.Name.Local, a.Name.Local, a.Value)
				}
			}
		}
		if elements["script"] > 0 || elements["svg"] != 1 || elements["rect"] < 4 || elements["polygon"] < 2 {
			t.Errorf("%s: elements %v", name, elements)
		}
	}
}

// TestBandsEndWhereFaultsEnd pairs faults with what ends them.
func TestBandsEndWhereFaultsEnd(t *testing.T) {
	at := func(second int, kind model.FaultKind, nodes ...string) model.Event {
		return model.Event{At: time.Duration(second) * time.Second, Kind: model.EventFault, Nodes: nodes, Fault: model.Fault{Kind: kind}}
	}
	bands := faultBands(&sim.Result{Scenario: &sim.Scenario{}, Simulated: time.Minute, Events: []model.Event{
		at(10, model.Cut, "n1", "n2"), at(12, model.Lose, "n1"), at(15, model.Crash, "n1"), at(20, model.Heal, "n1"), at(30, model.Handover, "n3"),
	}})
	sides := at(40, model.Part, "n1", "n2")
	sides.Fault.Other = "n2"
	for _, b := range faultBands(&sim.Result{Scenario: &sim.Scenario{}, Simulated: time.Minute, Events: []model.Event{sides, at(50, model.Heal, "n1")}}) {
		if b.until != 50*time.Second {
			t.Errorf("%s is apart from the other until %s, though one side is healed at 50 s", b.node, b.until)
		}
	}
	var got []string
	for _, b := range bands {
		got = append(got, b.node+" "+string(b.fault.Kind)+" "+short(b.from)+" "+short(b.until))
	}
	want := "n1 cut 10.0 s 20.0 s|n2 cut 10.0 s 1m|n1 lose 12.0 s 20.0 s|n1 crash 15.0 s 1m|n3 handover 30.0 s 30.0 s"
	if strings.Join(got, "|") != want {
		t.Errorf("%s\nwant\n%s", strings.Join(got, "|"), want)
	}
}
