package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"

	"shoal/cli/lab"
	"shoal/peer/admin"
)

// session is one run of the bench: its folder and the lab that is open.
type session struct {
	cfg      Config
	dir      string
	out      io.Writer
	progress func(step string) (done func(error))

	lab    *lab.Lab
	loaded string // the web image's tarball, once it is on every peer of the lab
}

func checkRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("the bench makes network namespaces and containers: run it as root")
	}
	return nil
}

// times is how often something is measured.
func (s *session) times(full, quick int) int {
	if s.cfg.Quick {
		return quick
	}
	return full
}

func (s *session) step(name string, work func() error) error {
	done := s.progress(name)
	err := work()
	done(err)
	return err
}

// open returns a running lab of that many peers, the present one if it fits.
func (s *session) open(ctx context.Context, peers int) (*lab.Lab, error) {
	if s.lab != nil && len(s.lab.Peers) == peers {
		return s.lab, nil
	}
	if err := s.closeLab(); err != nil {
		return nil, err
	}
	opened, err := lab.Open(ctx, lab.Config{Peers: peers, Dir: s.dir, Progress: s.progress})
	if err != nil {
		return nil, err
	}
	s.lab = opened
	if peers == 1 {
		return opened, nil
	}
	return opened, s.step("wait until every shard has its voters", func() error { return awaitVoters(ctx, opened) })
}

// openWithImage is open with the demo's image on every peer.
func (s *session) openWithImage(ctx context.Context, peers int) (*lab.Lab, error) {
	opened, err := s.open(ctx, peers)
	if err != nil || s.loaded != "" {
		return opened, err
	}
	return opened, s.step("load the image on every peer", func() (err error) {
		s.loaded, err = opened.LoadWebImage(ctx)
		return err
	})
}

func (s *session) closeLab() error {
	if s.lab == nil {
		return nil
	}
	closing := s.lab
	s.lab, s.loaded = nil, ""
	return s.step("take the lab down", closing.Close)
}

func (s *session) close() error {
	return errors.Join(s.closeLab(), os.RemoveAll(s.dir))
}

// client speaks protobuf to one peer of the lab, from that peer's namespace.
func client(l *lab.Lab, n int) (*kubernetes.Clientset, error) {
	config, err := l.Config(n)
	if err != nil {
		return nil, err
	}
	config.ContentType = runtime.ContentTypeProtobuf
	return kubernetes.NewForConfig(config)
}

// awaitVoters waits until all shards have as many voters as they will get, and a leader.
func awaitVoters(ctx context.Context, l *lab.Lab) error {
	want := min(3, len(l.Peers))
	if want == 2 {
		want = 1 // two voters are worse than one
	}
	last := ""
	err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, 60*time.Second, true, func(ctx context.Context) (bool, error) {
		text, err := l.Peers[0].Command(ctx, "status", "-o", "json")
		if err != nil {
			return false, err
		}
		var status admin.Status
		if err := json.Unmarshal([]byte(text), &status); err != nil {
			return false, err
		}
		for _, shard := range status.Shards {
			if len(shard.Voters) < want || shard.Leader == "" {
				last = fmt.Sprintf("shard %d has %d voters", shard.Shard, len(shard.Voters))
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil && last != "" {
		return fmt.Errorf("%s: %w", last, err)
	}
	return err
}

// loadAverage is the machine's load over the last minute; figures taken on a busy machine say little.
func loadAverage() float64 {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), " ")
	load, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return load
}
