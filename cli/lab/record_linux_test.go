package lab

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// recorded is a StatefulSet whose containers write down in a folder of this machine when they lived, and do not obey SIGTERM.
func recorded(name string, replicas int, dir string) string {
	manifest := statefulSet(name, replicas)
	manifest, _, _ = strings.Cut(manifest, "      containers:\n")
	manifest = strings.Replace(manifest, "terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 4", 1)
	manifest = strings.Replace(manifest, "  serviceName:", "  podManagementPolicy: Parallel\n  serviceName:", 1)
	return manifest + fmt.Sprintf(`      containers:
      - {name: main, image: %s, args: [record, /record], volumeMounts: [{name: record, mountPath: /record}]}
      volumes: [{name: record, hostPath: {path: %q}}]
`, testImage, dir)
}

// recordDir is a folder that containers of all peers may write to.
func recordDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// life is when one container of an identity ran, by this machine's monotonic clock.
type life struct {
	identity    string
	begun, last time.Duration
}

// lives reads a recording, in the order in which the containers began.
func lives(t testing.TB, dir string) []life {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	var all []life
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		l := life{identity: strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))}
		if len(text) == 0 {
			continue // it has just begun
		}
		if _, err := fmt.Sscanf(string(text), "%d %d", &l.begun, &l.last); err != nil {
			t.Fatalf("%s says %q: %v", file, text, err)
		}
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b life) int { return cmp.Compare(a.begun, b.begun) })
	return all
}

// neverTwo demands that no two containers of one identity ever ran at the same time, and returns the pauses between those that followed
// each other.
func neverTwo(t testing.TB, dir string) (pauses map[string][]time.Duration) {
	t.Helper()
	pauses = map[string][]time.Duration{}
	before := map[string]life{}
	for _, l := range lives(t, dir) {
		if former, ok := before[l.identity]; ok {
			pause := l.begun - former.last
			pauses[l.identity] = append(pauses[l.identity], pause)
			if pause <= 0 {
				t.Errorf("%s ran twice: one from %s to %s, another from %s on", l.identity, former.begun, former.last, l.begun)
			}
			l.last = max(l.last, former.last)
		}
		before[l.identity] = l
	}
	return pauses
}
