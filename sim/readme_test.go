package sim

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"shoal/sim/model"
)

// TestReadmeKnowsEveryFault compares the README's table with what there is.
func TestReadmeKnowsEveryFault(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range model.FaultForms {
		ends := ""
		if f.Ends != "" {
			ends = "`" + string(f.Ends) + "`"
		}
		if row := fmt.Sprintf("| `%s` | %s | %s |\n", FaultLine(f), f.Meaning, ends); !strings.Contains(string(readme), row) {
			t.Errorf("the README lacks\n%s", row)
		}
	}
}
