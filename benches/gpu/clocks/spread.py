import gzip,struct,sys,collections
import statistics as st
d=gzip.open(sys.argv[1]).read()
recs=[]
for i in range(16384):
    o=64+i*64
    s,c=struct.unpack('II',d[o:o+8]); tag,t0,t1,t2,t3,g=struct.unpack('qqqqqQ',d[o+8:o+56])
    if t0: recs.append((g,s,c,tag,t0,t1,t2,t3))
recs.sort(); last=recs[-1][0]
names={7:'attn',4096*10000+1024:'qkv',1024*10000+2048:'o',3072*10000+1024:'gu',1024*10000+3072:'down'}
# clock rate
sm=recs[-1][1]; L=[r for r in recs if r[1]==sm and last-r[0]<600000]
hz=(L[-1][7]-L[0][7])/(L[-1][0]-L[0][0]); print('GHz',hz)
seq=collections.defaultdict(list)
for r in recs:
    if last-r[0]<float(sys.argv[2])*1000: seq[names.get(r[3],r[3])].append(r)
# split in instances by block count
inst=[]
for n,rs in seq.items():
    cur=[];seen=set()
    for r in rs:
        if r[2] in seen: inst.append((n,cur)); cur=[];seen=set()
        cur.append(r); seen.add(r[2])
    inst.append((n,cur))
inst.sort(key=lambda x:max(r[0] for r in x[1]))
def q(v): v=sorted(v); return '%8.2f %8.2f %8.2f'%(v[0],v[len(v)//2],v[-1])
prev=None
for n,rs in inst[-int(sys.argv[3]):]:
    f=lambda k:[(r[0]-last-(r[7]-r[k])/hz)/1000 for r in rs]
    sms=collections.Counter(r[1] for r in rs)
    print('%5s n=%3d/%3d sms max %d | start %s | x %s | w %s | end %s'%(n,len(rs),len(sms),max(sms.values()),q(f(4)),q(f(5)),q(f(6)),q(f(7))))
