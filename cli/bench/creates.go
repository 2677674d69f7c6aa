package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"

	"shoal/cli/bench/load"
	"shoal/cli/lab"
)

// Load of the creates figure.
const (
	inFlight     = 32
	payloadBytes = 1024
)

// referenceProgram runs etcd's members in processes of their own; it is no part of the peer's binary.
const referenceProgram = "etcdref"

// measureCreates makes ConfigMaps through the APIs of three peers, in one namespace (one shard) and in eight, beside puts of the same size
// into an etcd of three members on the same disk. A create is more than a put: authentication, admission, validation, defaulting and
// encoding are in it.
func measureCreates(ctx context.Context, s *session) ([]Row, error) {
	l, err := s.open(ctx, 3)
	if err != nil {
		return nil, err
	}
	span := time.Duration(s.times(10, 3)) * time.Second
	var etcd load.Result
	err = s.step(fmt.Sprintf("etcd, three members: puts for %s, %d in flight", span, inFlight), func() (err error) {
		etcd, err = s.etcd(ctx, span, "--in-flight", strconv.Itoa(inFlight))
		return err
	})
	if err != nil {
		return nil, err
	}
	var rows []Row
	for _, namespaces := range []int{1, 8} {
		var ours load.Result
		err := s.step(fmt.Sprintf("three peers: creates for %s, %d in flight, %d namespaces", span, inFlight, namespaces), func() (err error) {
			ours, err = createMany(ctx, l, span, namespaces)
			return err
		})
		if err != nil {
			return rows, err
		}
		rows = append(rows, createRows(ours, etcd, namespaces)...)
	}
	return rows, nil
}

func createRows(ours, etcd load.Result, namespaces int) []Row {
	what := fmt.Sprintf("API creates/s, three peers, %d namespaces", namespaces)
	if namespaces == 1 {
		what = "API creates/s, three peers, one namespace"
	}
	return []Row{
		{
			What: what, Unit: "1/s", Measured: sampleOf([]float64{ours.PerSecond}),
			Against: "etcd puts", Reference: sampleOf([]float64{etcd.PerSecond}),
		},
		{
			What: "  time of one", Unit: "ms", Measured: Sample{P50: ours.P50, P99: ours.P99, N: ours.Count},
			Against: "etcd put", Reference: Sample{P50: etcd.P50, P99: etcd.P99, N: etcd.Count},
		},
	}
}

// etcd runs the reference in a process of its own.
func (s *session) etcd(ctx context.Context, span time.Duration, more ...string) (load.Result, error) {
	var result load.Result
	program, err := findProgram(referenceProgram)
	if err != nil {
		return result, err
	}
	dir, err := os.MkdirTemp(s.dir, "etcd-")
	if err != nil {
		return result, err
	}
	defer os.RemoveAll(dir)
	arguments := append([]string{"--dir", dir, "--for", span.String(), "--bytes", strconv.Itoa(payloadBytes)}, more...)
	command := exec.CommandContext(ctx, program, arguments...)
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	var complaint strings.Builder
	command.Stderr = &complaint
	out, err := command.Output()
	if err != nil {
		return result, fmt.Errorf("%s: %w: %s", referenceProgram, err, strings.TrimSpace(complaint.String()))
	}
	return result, json.Unmarshal(out, &result)
}

func findProgram(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s, which the bench starts, is neither beside this program nor in $PATH: `just bench` builds it", name)
	}
	return path, nil
}

func createMany(ctx context.Context, l *lab.Lab, span time.Duration, namespaces int) (load.Result, error) {
	var clients []*kubernetes.Clientset
	for n := range l.Peers {
		api, err := client(l, n)
		if err != nil {
			return load.Result{}, err
		}
		clients = append(clients, api)
	}
	names := make([]string, namespaces)
	for i := range names {
		names[i] = fmt.Sprintf("bench-%d-%d", namespaces, i)
		if err := makeNamespace(ctx, clients[0], names[i]); err != nil {
			return load.Result{}, err
		}
	}
	if err := seeEverywhere(ctx, clients, names); err != nil {
		return load.Result{}, err
	}
	payload := strings.Repeat("v", payloadBytes)
	var made atomic.Int64
	return load.Run(ctx, inFlight, span, func(ctx context.Context, worker int) error {
		n := made.Add(1)
		_, err := clients[worker%len(clients)].CoreV1().ConfigMaps(names[worker%len(names)]).Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("c%d", n)},
			Data:       map[string]string{"value": payload},
		}, metav1.CreateOptions{})
		return err
	})
}

func makeNamespace(ctx context.Context, api kubernetes.Interface, name string) error {
	_, err := api.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	return err
}

// seeEverywhere waits until every peer knows the namespaces.
func seeEverywhere(ctx context.Context, clients []*kubernetes.Clientset, names []string) error {
	failed := make([]error, len(clients))
	var all sync.WaitGroup
	for i, api := range clients {
		all.Go(func() {
			failed[i] = wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, 10*time.Second, true, func(ctx context.Context) (bool, error) {
				for _, name := range names {
					if _, err := api.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{}); err != nil {
						return false, nil // not there yet
					}
				}
				return true, nil
			})
		})
	}
	all.Wait()
	return errors.Join(failed...)
}
