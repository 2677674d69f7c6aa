package load

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
)

type counted struct{ puts, gets int }

func (c *counted) Put(_ context.Context, _ int64, _ bool, value string) error {
	c.puts += len(value)
	return nil
}

func (c *counted) Get(context.Context, int64, bool) error {
	c.gets++
	return nil
}

func TestServeAnswersEveryLine(t *testing.T) {
	in := strings.NewReader(`{"op":"put","bytes":3,"inFlight":1,"for":1000000}
{"op":"get","inFlight":1,"for":1000000}
{"op":"kill"}
{"op":"dance"}
`)
	var out strings.Builder
	target := &counted{}
	if err := Serve(t.Context(), in, &out, target); err != nil {
		t.Fatal(err)
	}
	var answers []Answer
	for dec := json.NewDecoder(strings.NewReader(out.String())); dec.More(); {
		var a Answer
		if err := dec.Decode(&a); err != nil {
			t.Fatal(err)
		}
		answers = append(answers, a)
	}
	if len(answers) != 4 || answers[0].Result.Count*3 != target.puts || answers[1].Result.Count != target.gets || answers[0].Result.Count == 0 {
		t.Fatalf("%+v for %+v", answers, target)
	}
	if answers[2].Error == "" || answers[3].Error == "" {
		t.Errorf("what cannot be done was not refused: %+v", answers[2:])
	}
}

func TestServeRefusesWhatIsNoCase(t *testing.T) {
	if err := Serve(t.Context(), strings.NewReader("hello\n"), &strings.Builder{}, &counted{}); err == nil {
		t.Error("no error")
	}
}
