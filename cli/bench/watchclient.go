package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"shoal/cli/lab"
)

// watchClient watches a peer over one connection, in protobuf. Unlike client-go's watches, which cost a second goroutine and a channel per
// event, it does no more than etcd's client does: read a frame, decode it. Clients and peers share the machine's processors, and what is
// to be measured is the peers.
type watchClient struct {
	http *http.Client
	host string
}

// watchClients are enough for all watchers, spread over the peers.
func watchClients(l *lab.Lab) ([]watchClient, error) {
	var all []watchClient
	for n := 0; n*watchersClient < watchers; n++ {
		config, err := l.Config(n % len(l.Peers))
		if err != nil {
			return nil, err
		}
		client, err := rest.HTTPClientFor(config)
		if err != nil {
			return nil, err
		}
		// Now, so that all of its watches find the connection there and do not each make their own.
		response, err := client.Get(config.Host + "/version")
		if err != nil {
			return nil, err
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			return nil, err
		}
		response.Body.Close() //nolint:errcheck // all of it was read
		all = append(all, watchClient{http: client, host: config.Host})
	}
	return all, nil
}

// watch follows a namespace's ConfigMaps but the one that every namespace has. It ends with an error, that of see if it returns one.
func (c watchClient) watch(ctx context.Context, namespace string, ready func(), see func(metav1.WatchEvent) error) error {
	url := c.host + "/api/v1/namespaces/" + namespace + "/configmaps?watch=1&fieldSelector=metadata.name!%3Dkube-root-ca.crt"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", runtime.ContentTypeProtobuf+";stream=watch")
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	ready()
	reader := bufio.NewReader(response.Body)
	var frame []byte
	for {
		var length [4]byte
		if _, err := io.ReadFull(reader, length[:]); err != nil {
			return err
		}
		size := int(binary.BigEndian.Uint32(length[:]))
		frame = append(frame[:0], make([]byte, size)...)
		if _, err := io.ReadFull(reader, frame); err != nil {
			return err
		}
		var event metav1.WatchEvent
		if err := event.Unmarshal(frame); err != nil {
			return err
		}
		if err := see(event); err != nil {
			return err
		}
	}
}

// configMapOf is the ConfigMap that an event says was added.
func configMapOf(event metav1.WatchEvent) (*corev1.ConfigMap, error) {
	if event.Type != string(watch.Added) {
		return nil, fmt.Errorf("unexpected %s", event.Type)
	}
	object := &corev1.ConfigMap{}
	return object, unpack(event.Object.Raw, object)
}

// unpack decodes what is in Kubernetes' envelope for protobuf.
func unpack(data []byte, into interface{ Unmarshal([]byte) error }) error {
	inner, found := bytes.CutPrefix(data, []byte("k8s\x00"))
	if !found {
		return errors.New("not in protobuf")
	}
	var envelope runtime.Unknown
	if err := envelope.Unmarshal(inner); err != nil {
		return err
	}
	return into.Unmarshal(envelope.Raw)
}
