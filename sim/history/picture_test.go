package history

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestPictures: any history can be drawn, and the picture holds what is to be seen in it, without anything from elsewhere.
func TestPictures(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHistory(t)
		h.Faults = []Fault{{Kind: "kill", What: "kill: peer-<1>", Begin: time.Second, End: 2 * time.Second, Minority: true}}
		v := Violation{Checker: CheckReads, At: time.Second, Key: "things/a/1", Message: "it is \"wrong\"", Operations: []int{h.Operations[0].ID}}
		var out bytes.Buffer
		if err := Draw(&out, h, []Violation{v}); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"<svg", fmt.Sprintf("client %d<", h.Operations[0].Client), `class="minority"`, "kill: peer-&lt;1&gt;", `class="violation"`, `class="blamed"`, `class="watch"`, "it is &#34;wrong&#34;"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %s in the picture", want)
			}
		}
		for _, unwanted := range []string{"http:", "https:", "<script"} {
			if strings.Contains(out.String(), unwanted) {
				t.Errorf("%s is in the picture", unwanted)
			}
		}
		if err := Visualize(&bytes.Buffer{}, h, h.Operations[0].Key, time.Second); err != nil {
			t.Error(err)
		}
	})
}
