package api

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	goruntime "runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// longLists answers lists without a limit from pages of the same list, so that a list of everything in a large cluster
// does not hold all objects decoded at once, which is several times the size of the store. The pages are of one
// revision; what was encoded of them is kept compressed until the last is there, because the protobuf form begins with
// its length and because a list that fails half-way is to be an error and not a torn answer.
//
// Lists that fit one page pass unchanged. So do tables and forms other than JSON and protobuf.
type longLists struct{ next http.Handler }

// longListPage is how many objects are decoded at a time.
const longListPage = 500

// errOtherForm is an answer that cannot be put together from pages.
var errOtherForm = errors.New("not a list in JSON or protobuf")

// ServeHTTP implements http.Handler.
func (l longLists) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !unlimitedList(r) {
		l.next.ServeHTTP(w, r)
		return
	}
	page := &recordedPage{}
	l.read(page, r, "")
	more := page.code == http.StatusOK
	var whole *joinedList
	for more {
		part, err := page.parse()
		if whole == nil && (err != nil || part.meta.Continue == "") {
			if errors.Is(err, errOtherForm) && !page.complete() {
				l.next.ServeHTTP(w, r)
				return
			}
			break // it is all there is
		}
		if whole == nil {
			whole, err = newJoinedList(page.header, part)
		}
		if err == nil {
			err = whole.add(part)
		}
		if err != nil {
			http.Error(w, fmt.Sprintf("list in pages: %v", err), http.StatusInternalServerError)
			return
		}
		if part.meta.Continue == "" {
			whole.writeTo(w)
			return
		}
		collectPages()
		l.read(page, r, part.meta.Continue)
		more = page.code == http.StatusOK
	}
	page.writeTo(w)
}

const (
	// pageGarbage is how much garbage, in bytes and as a part of what is alive, the pages
	// of long lists leave before it is collected.
	pageGarbage     = 32 << 20
	pageGarbagePart = 8
)

// collecting lets one list at a time collect, for all of them.
var collecting sync.Mutex

// collectPages collects what the pages of long lists have left, once that is worth it. The
// collector would do so by itself, but beside the lists: while it goes through a large
// store on a busy machine, they go on and leave as much again.
func collectPages() {
	collecting.Lock()
	defer collecting.Unlock()
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	alive, all := sample[0].Value.Uint64(), sample[1].Value.Uint64()
	if all > alive+max(pageGarbage, alive/pageGarbagePart) {
		goruntime.GC()
	}
}

// unlimitedList says whether the request is for a list that could be long.
func unlimitedList(r *http.Request) bool {
	info, ok := request.RequestInfoFrom(r.Context())
	if !ok || !info.IsResourceRequest || info.Verb != "list" || info.Subresource != "" || r.Method != http.MethodGet {
		return false
	}
	query := r.URL.Query()
	for _, name := range []string{"limit", "continue", "watch", "pretty"} {
		if value := query.Get(name); value != "" && value != "0" && value != "false" {
			return false
		}
	}
	return !strings.Contains(r.Header.Get("Accept"), "as=Table")
}

// read asks for one page. The first has the request's own demands on the revision; its token stands for them afterwards.
func (l longLists) read(page *recordedPage, r *http.Request, token string) {
	*page = recordedPage{header: http.Header{}, body: page.body[:0]}
	inner := r.Clone(r.Context())
	query := inner.URL.Query()
	query.Set("limit", strconv.Itoa(longListPage))
	if token != "" {
		query.Set("continue", token)
		query.Del("resourceVersion")
		query.Del("resourceVersionMatch")
	}
	inner.URL.RawQuery = query.Encode()
	inner.RequestURI = inner.URL.RequestURI()
	inner.Header.Del("Accept-Encoding")
	l.next.ServeHTTP(page, inner)
	if page.code == 0 {
		page.code = http.StatusOK
	}
}

// recordedPage is an answer that was not sent yet.
type recordedPage struct {
	header http.Header
	code   int
	body   []byte
}

// Header implements http.ResponseWriter.
func (p *recordedPage) Header() http.Header { return p.header }

// WriteHeader implements http.ResponseWriter.
func (p *recordedPage) WriteHeader(code int) { p.code = code }

// Write implements http.ResponseWriter.
func (p *recordedPage) Write(b []byte) (int, error) {
	p.body = append(p.body, b...)
	return len(b), nil
}

func (p *recordedPage) writeTo(w http.ResponseWriter) {
	copyHeader(w.Header(), p.header)
	w.WriteHeader(p.code)
	_, _ = w.Write(p.body) // the client is gone
}

func copyHeader(to, from http.Header) {
	for name, values := range from {
		if name != "Content-Length" {
			to[name] = values
		}
	}
}

// complete says that a form which cannot be parsed is known to have no further page.
func (p *recordedPage) complete() bool { return !bytes.Contains(p.body, []byte("continue")) }

// listPart is a page: the items as they stand in the answer.
type listPart struct {
	protobuf bool
	kind     metav1.TypeMeta
	meta     metav1.ListMeta
	items    []byte
}

var protobufMagic = []byte("k8s\x00")

func (p *recordedPage) parse() (listPart, error) {
	if bytes.HasPrefix(p.body, protobufMagic) {
		return parseProtobuf(p.body[len(protobufMagic):])
	}
	if !strings.HasPrefix(p.header.Get("Content-Type"), runtime.ContentTypeJSON) {
		return listPart{}, errOtherForm
	}
	var page struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        metav1.ListMeta `json:"metadata"`
		Items           json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(p.body, &page); err != nil || len(page.Items) < 2 || page.Items[0] != '[' {
		return listPart{}, errOtherForm
	}
	return listPart{kind: page.TypeMeta, meta: page.Metadata, items: page.Items[1 : len(page.Items)-1]}, nil
}

// parseProtobuf reads upstream's envelope, runtime.Unknown. Every list in it has its metadata in field 1 and its items
// in field 2: https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding.
func parseProtobuf(body []byte) (listPart, error) {
	var envelope runtime.Unknown
	if err := envelope.Unmarshal(body); err != nil {
		return listPart{}, fmt.Errorf("%w: %w", errOtherForm, err)
	}
	part := listPart{protobuf: true, kind: metav1.TypeMeta{Kind: envelope.Kind, APIVersion: envelope.APIVersion}}
	for raw := envelope.Raw; len(raw) > 0; {
		tag, n := binary.Uvarint(raw)
		if n <= 0 || tag&7 != 2 {
			return listPart{}, errOtherForm
		}
		size, m := binary.Uvarint(raw[n:])
		if m <= 0 || size > uint64(len(raw)-n-m) {
			return listPart{}, errOtherForm
		}
		end := n + m + int(size)
		if tag>>3 == 1 {
			if err := part.meta.Unmarshal(raw[n+m : end]); err != nil {
				return listPart{}, fmt.Errorf("%w: %w", errOtherForm, err)
			}
		} else {
			part.items = append(part.items, raw[:end]...)
		}
		raw = raw[end:]
	}
	return part, nil
}

// joinedList collects pages.
type joinedList struct {
	header http.Header
	first  listPart
	// items are compressed; size is their length before.
	items  bytes.Buffer
	packer *zstd.Encoder
	size   int
}

func newJoinedList(header http.Header, first listPart) (*joinedList, error) {
	j := &joinedList{header: header, first: first}
	j.first.items = nil
	j.first.meta.Continue, j.first.meta.RemainingItemCount = "", nil
	var err error
	j.packer, err = zstd.NewWriter(&j.items, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	return j, err
}

func (j *joinedList) add(part listPart) error {
	if part.protobuf != j.first.protobuf || part.kind != j.first.kind {
		return fmt.Errorf("a page of %s follows one of %s", part.kind.Kind, j.first.kind.Kind)
	}
	if !part.protobuf && j.size > 0 && len(part.items) > 0 {
		part.items = append([]byte{','}, part.items...)
	}
	j.size += len(part.items)
	_, err := j.packer.Write(part.items)
	return err
}

// writeTo sends the list. An error after its beginning can only end the connection.
func (j *joinedList) writeTo(w http.ResponseWriter) {
	head, tail, err := j.frame()
	if err == nil {
		err = j.packer.Close()
	}
	if err != nil {
		http.Error(w, fmt.Sprintf("list in pages: %v", err), http.StatusInternalServerError)
		return
	}
	copyHeader(w.Header(), j.header)
	w.Header().Set("Content-Length", strconv.Itoa(len(head)+j.size+len(tail)))
	w.WriteHeader(http.StatusOK)
	unpacker, err := zstd.NewReader(&j.items, zstd.WithDecoderConcurrency(1))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer unpacker.Close()
	for _, part := range []io.Reader{bytes.NewReader(head), unpacker, bytes.NewReader(tail)} {
		if _, err := io.Copy(w, part); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}

// frame is what stands before and after the items.
func (j *joinedList) frame() (head, tail []byte, err error) {
	if !j.first.protobuf {
		head, err = json.Marshal(struct {
			metav1.TypeMeta `json:",inline"`
			Metadata        metav1.ListMeta `json:"metadata"`
			Items           []int           `json:"items"`
		}{j.first.kind, j.first.meta, []int{}})
		return bytes.TrimSuffix(head, []byte("]}")), []byte("]}\n"), err
	}
	meta, err := j.first.meta.Marshal()
	if err != nil {
		return nil, nil, err
	}
	kind, err := (&runtime.TypeMeta{APIVersion: j.first.kind.APIVersion, Kind: j.first.kind.Kind}).Marshal()
	if err != nil {
		return nil, nil, err
	}
	const field1, field2, field3, field4 = 1<<3 | 2, 2<<3 | 2, 3<<3 | 2, 4<<3 | 2
	meta = append(binary.AppendUvarint([]byte{field1}, uint64(len(meta))), meta...)
	head = append(append([]byte{}, protobufMagic...), field1)
	head = append(binary.AppendUvarint(head, uint64(len(kind))), kind...)
	head = binary.AppendUvarint(append(head, field2), uint64(len(meta)+j.size))
	return append(head, meta...), []byte{field3, 0, field4, 0}, nil
}
