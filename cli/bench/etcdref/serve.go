package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"

	"shoal/cli/bench/load"
)

// serveCases runs the members, this process being the one that leads, and does what the lines of in say.
func serveCases(ctx context.Context, dir string, count int, in io.Reader, out io.Writer) error {
	members, err := plan(count)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, end := context.WithCancel(ctx)
	ready := load.Ready{PIDs: []int{os.Getpid()}}
	var running []*exec.Cmd
	defer func() {
		end()
		for _, command := range running {
			_ = command.Wait() // it was asked to end
		}
	}()
	for _, m := range members[1:] {
		command := m.process(ctx, self, dir)
		if err := command.Start(); err != nil {
			return err
		}
		running, ready.PIDs = append(running, command), append(ready.PIDs, command.Process.Pid)
	}
	server, err := members[0].start(dir)
	if err != nil {
		return err
	}
	defer server.Close()
	client := v3client.New(server.Server)
	defer client.Close()
	if err := awaitPut(ctx, client); err != nil {
		return err
	}
	if err := lead(ctx, server, members); err != nil {
		return err
	}
	if err := json.NewEncoder(out).Encode(ready); err != nil {
		return err
	}
	return load.Serve(ctx, in, out, target{client})
}

// lead makes the member in this process the leader.
func lead(ctx context.Context, server *embed.Etcd, members []member) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		mine, leader := uint64(server.Server.MemberID()), uint64(server.Server.Leader())
		if mine == leader {
			return nil
		}
		err := errors.New("it has no leader")
		for _, m := range members[1:] {
			var client *clientv3.Client
			if client, err = clientv3.New(clientv3.Config{Endpoints: []string{m.client}, Logger: zap.NewNop()}); err != nil {
				return err
			}
			// Only the leader says yes.
			_, err = client.MoveLeader(ctx, mine)
			client.Close() //nolint:errcheck // nothing is kept in it
			if err == nil {
				break
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("etcd's first member does not lead: %w", errors.Join(ctx.Err(), err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// target is an etcd, whose keys are all in one store, so that spread makes no difference.
type target struct{ *clientv3.Client }

func (t target) Put(ctx context.Context, n int64, _ bool, value string) error {
	_, err := t.Client.Put(ctx, fmt.Sprint("/bench/", n), value)
	return err
}

func (t target) Get(ctx context.Context, n int64, _ bool) error {
	_, err := t.Client.Get(ctx, fmt.Sprint("/bench/", n))
	return err
}
