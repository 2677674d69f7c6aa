package consensus

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const crashTrace = `panic: unexpected EOF

goroutine 19 [running]:
github.com/lni/dragonboat/v4/raftpb.MustUnmarshal(...)
github.com/lni/dragonboat/v4/internal/rsm.(*StateMachine).handle(0xa2, {0xa3, 0x1})
created by github.com/lni/goutils/syncutil.(*Stopper).runWorker in goroutine 1

goroutine 20 [running]:
github.com/lni/dragonboat/v4.(*node).stepNode(0xb1)
`

func TestACrashFindsItsReplica(t *testing.T) {
	begin := "starting 1 3\nreplica 0xa1 1 3\nreplica 0xa2 1 3\nstarting 2 4\nreplica 0xb1 2 4\n"
	for name, check := range map[string]struct {
		text string
		want replicaKey
	}{
		"no crash":                       {begin, replicaKey{}},
		"of a running replica":           {begin + crashTrace, replicaKey{1, 3}},
		"of another goroutine":           {begin + strings.ReplaceAll(crashTrace, "0xa2", "0xff"), replicaKey{}},
		"while a replica was started":    {begin + "starting 5 9\n" + strings.ReplaceAll(crashTrace, "0xa2", "0xff"), replicaKey{5, 9}},
		"of nothing of dragonboat's":     {begin + "starting 5 9\npanic: x\n\ngoroutine 1 [running]:\nmain.main()\n", replicaKey{}},
		"garbage":                        {"replica 0x 1 panic: \ngoroutine ", replicaKey{}},
		"an address that was used twice": {"replica 0xa2 7 7\n" + begin + crashTrace, replicaKey{1, 3}},
	} {
		got := replicaKey{}
		if f := readCrash(check.text, time.Now()); f != nil {
			got = replicaKey{f.Shard, f.Replica}
		}
		if got != check.want {
			t.Errorf("%s: %+v, want %+v", name, got, check.want)
		}
	}
}

func TestACrashIsToldOnce(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, crashFile), []byte("replica 0xa2 1 3\n"+crashTrace), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		log, crashed, err := openCrashLog(dir)
		if err != nil || (crashed != nil) != want {
			t.Errorf("%+v, %v", crashed, err)
		}
		if err := log.close(); err != nil {
			t.Error(err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(dir, crashFile+".last")); err != nil || !strings.Contains(string(text), "unexpected EOF") {
		t.Errorf("the trace is gone: %v", err)
	}
}

func FuzzCrashes(f *testing.F) {
	f.Add(crashTrace)
	f.Fuzz(func(_ *testing.T, text string) { _ = readCrash(text, time.Now()) })
}
